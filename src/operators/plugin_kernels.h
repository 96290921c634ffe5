// The CUDA plug-in's kernels for operators that are given CUDA tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace conclave {

// From now on tensors on CUDA are computed by the plug-in's kernels: loads it on the first call, from any thread.
// Empty, or why there are none; then PyTorch's operators compute, and Python warns of it.
const std::string& why_no_cuda_kernels();

// The device and the kernels of an operator that works on this tensor, until the end of its scope.
class OperatorDevice {
 public:
  explicit OperatorDevice(const at::Tensor& tensor) : guard_(tensor.device()) {
    if (!tensor.is_cpu()) why_no_cuda_kernels();
  }

 private:
  c10::DeviceGuard guard_;  // kernels run on the device in use
};

}  // namespace conclave
