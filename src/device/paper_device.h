// A device on which a step runs without being computed: tensors are PyTorch's meta tensors, kernels add up what they
// cost, communicators count what they would send, and memory is an account. So what the engine does, in which order and
// with which tensors, is what a plan says.
#pragma once

#include <functional>
#include <map>

#include "comm/counting_communicator.h"
#include "device/device.h"
#include "device/paper_clock.h"
#include "device/paper_memory.h"
#include "mesh/layout.h"

namespace conclave {

enum class CollectivePattern { all_to_all, gather_or_scatter, all_reduce };

// A group of an axis, as a rank of it sees the network.
struct GroupOnNodes {
  int ranks = 1;
  int here = 1;  // on the rank's own node
};

// What the device stands for.
struct PaperMachine {
  bool is_gpu = true;        // with CUDA's facts and libraries; else a CPU's
  bool has_bf16 = true;      // fast
  int64_t threads = 1;       // that compute on a CPU: some buffers exist once for each
  bool stages_sums = false;  // communicators receive into buffers of their own before they sum
  PaperRates rates;
  // Seconds of a collective of which each rank sends `bytes`.
  std::function<double(CollectivePattern pattern, double bytes, const GroupOnNodes& group)> collective_seconds;
};

class PaperDevice final : public Device {
 public:
  // From now on meta tensors are this device's. One at a time.
  explicit PaperDevice(PaperMachine machine);
  ~PaperDevice() override;

  const DeviceFacts& facts() const override { return machine_.is_gpu ? cuda_facts : cpu_facts; }
  const Kernels& kernels() const override;
  bool has_fast_bf16() const override { return machine_.has_bf16; }
  std::optional<GpuChip> chip() const override;
  std::unique_ptr<OffloadMedium> make_offload_medium(const std::filesystem::path& folder) const override;
  int64_t peak_memory() const override { return memory_.report().at_peak.total; }
  const TimeSource* time() const override { return &clock_; }

  const PaperMachine& machine() const { return machine_; }
  PaperClock& clock() { return clock_; }
  PaperMemory& memory() { return memory_; }
  TrafficCount& traffic() { return traffic_; }

  // A collective over an axis begins; when it will have ended.
  double start(CollectivePattern pattern, int64_t bytes, const GroupOnNodes& group, const std::string& axis);
  const std::map<std::string, double>& busy_by_axis() const { return busy_by_axis_; }

  // Layer inputs leave and come back.
  double move_to_host(int64_t bytes);
  double move_from_host(int64_t bytes);
  int64_t most_offloaded() const { return most_offloaded_; }

 private:
  PaperMachine machine_;
  PaperClock clock_;
  PaperMemory memory_;
  TrafficCount traffic_;
  std::map<std::string, double> busy_by_axis_;
  int64_t offloaded_ = 0, most_offloaded_ = 0;
};

// The device of meta tensors at the moment.
PaperDevice& paper_device();

namespace paper {
extern const Kernels kernel_table;
}  // namespace paper

}  // namespace conclave
