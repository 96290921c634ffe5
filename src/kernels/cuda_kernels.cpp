#include "kernels/cuda_kernels.h"

namespace conclave {

namespace {

struct Chosen {
  const CudaKernels* kernels = nullptr;
  at::DeviceType device = at::kCUDA;
};

Chosen& chosen() {
  static Chosen value;
  return value;
}

}  // namespace

void use_cuda_kernels(const CudaKernels* kernels, at::DeviceType device) {
  chosen() = {kernels, device};
}

const CudaKernels* cuda_kernels(at::DeviceType device) {
  return device == chosen().device ? chosen().kernels : nullptr;
}

const CudaKernels* cuda_kernels(const at::Tensor& tensor) {
  const bool covered = tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16;
  return covered ? cuda_kernels(tensor.device().type()) : nullptr;
}

}  // namespace conclave
