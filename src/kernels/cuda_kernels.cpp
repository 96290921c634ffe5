#include "kernels/cuda_kernels.h"

#include <atomic>

namespace conclave {

namespace {

// Threads that compute on another type of device may look meanwhile.
std::atomic<const CudaKernels*> chosen_kernels = nullptr;
std::atomic<at::DeviceType> chosen_device = at::kCUDA;

}  // namespace

void use_cuda_kernels(const CudaKernels* kernels, at::DeviceType device) {
  chosen_kernels = nullptr;
  chosen_device = device;
  chosen_kernels = kernels;
}

const CudaKernels* cuda_kernels(at::DeviceType device) {
  return device == chosen_device ? chosen_kernels.load() : nullptr;
}

const CudaKernels* cuda_kernels(const at::Tensor& tensor) {
  const bool covered = tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16;
  return covered ? cuda_kernels(tensor.device().type()) : nullptr;
}

bool computes_as_cuda(const at::Tensor& tensor) {
  return tensor.is_cuda() || cuda_kernels(tensor.device().type()) != nullptr;
}

}  // namespace conclave
