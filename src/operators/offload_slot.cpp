// torch.classes.conclave.OffloadSlot: a place outside the device for one tensor at a time, of the engine's own kind:
// host memory for CUDA, a scratch file for the CPU.
#include <ATen/ATen.h>
#include <torch/custom_class.h>

#include "device/device.h"
#include "operators/plugin_kernels.h"

namespace conclave {
namespace {

class OffloadSlot final : public torch::CustomClassHolder {
 public:
  // For tensors of up to `bytes` on `device`, which may lie as scratch files in `folder`. Throws when there is no room.
  // NOLINTNEXTLINE(performance-unnecessary-value-param): PyTorch hands strings by value
  OffloadSlot(std::string folder, c10::Device device, int64_t bytes) {
    if (device.is_cuda()) why_no_cuda_kernels();
    medium_ = device_of(device).make_offload_medium(folder);
    medium_->reserve(1, bytes);
  }
  ~OffloadSlot() override { finish_quietly(); }

  // Starts a copy beside the computation; `tensor` is contiguous. One copy at a time.
  void write(const at::Tensor& tensor) { copy_ = medium_->write(0, tensor); }
  void read(const at::Tensor& tensor) { copy_ = medium_->read(0, tensor); }
  // Until the copy is done; on CUDA the current stream waits.
  void wait() {
    if (copy_) copy_();
    copy_ = {};
  }

 private:
  void finish_quietly() noexcept {
    try {
      wait();
    } catch (const std::exception&) {  // nobody will read it
    }
  }

  std::unique_ptr<OffloadMedium> medium_;
  OffloadMedium::Copy copy_;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.class_<OffloadSlot>("OffloadSlot")
      .def(torch::init<std::string, c10::Device, int64_t>())
      .def("write", &OffloadSlot::write)
      .def("read", &OffloadSlot::read)
      .def("wait", &OffloadSlot::wait);
}

}  // namespace conclave
