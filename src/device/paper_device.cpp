#include "device/paper_device.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.h"

namespace conclave {
namespace {

PaperDevice* current = nullptr;

class PaperSlots final : public OffloadMedium {
 public:
  explicit PaperSlots(PaperDevice& device) : device_(device) {}
  void reserve(int64_t, int64_t) override {}
  Copy write(int64_t, at::Tensor tensor) override {
    const double end = device_.move_to_host(static_cast<int64_t>(tensor.nbytes()));
    return [&clock = device_.clock(), end, held = std::move(tensor)] { clock.wait_until(end); };
  }
  Copy read(int64_t, at::Tensor tensor) override {
    const double end = device_.move_from_host(static_cast<int64_t>(tensor.nbytes()));
    return [&clock = device_.clock(), end] { clock.wait_until(end); };
  }

 private:
  PaperDevice& device_;
};

}  // namespace

PaperDevice::PaperDevice(PaperMachine machine) : machine_(std::move(machine)), clock_(machine_.rates) {
  current = this;
  use_device(at::kMeta, this);
}

PaperDevice::~PaperDevice() {
  use_device(at::kMeta, nullptr);
  current = nullptr;
}

PaperDevice& paper_device() {
  check_invariant(current != nullptr, "nothing runs on paper");
  return *current;
}

const Kernels& PaperDevice::kernels() const {
  return paper::kernel_table;
}

// Whether the device has fp8 products was asked before.
std::optional<GpuChip> PaperDevice::chip() const {
  return GpuChip{"paper", 9, 0, 0};
}

std::unique_ptr<OffloadMedium> PaperDevice::make_offload_medium(const std::filesystem::path&) const {
  return std::make_unique<PaperSlots>(paper_device());
}

double PaperDevice::start(CollectivePattern pattern, int64_t bytes, const GroupOnNodes& group,
                          const std::string& axis) {
  const double seconds = machine_.collective_seconds(pattern, static_cast<double>(bytes), group);
  busy_by_axis_[axis] += seconds;
  const bool of_rows = axis == name_of(Axis::expert);
  return clock_.start(of_rows ? PaperClock::Lane::rows : PaperClock::Lane::reductions, seconds);
}

double PaperDevice::move_to_host(int64_t bytes) {
  offloaded_ += bytes;
  most_offloaded_ = std::max(most_offloaded_, offloaded_);
  return clock_.start_copy(static_cast<double>(bytes));
}

double PaperDevice::move_from_host(int64_t bytes) {
  offloaded_ -= bytes;
  return clock_.start_copy(static_cast<double>(bytes));
}

}  // namespace conclave
