#include "cuda/pinned_memory.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>

namespace conclave {
namespace {

// A thread that has chosen no device would make a context on the first one, which may be another rank's.
class OnUsedDevice {
 public:
  OnUsedDevice() {
    if (const auto device = c10::cuda::getDeviceIndexWithPrimaryContext()) guard_.set_index(*device);
  }

 private:
  c10::cuda::OptionalCUDAGuard guard_;
};

void free_pinned(void* memory) {
  const OnUsedDevice device;
  C10_CUDA_CHECK_WARN(cudaFreeHost(memory));
}

}  // namespace

at::Tensor cuda::pinned_memory(int64_t bytes) {
  const OnUsedDevice device;
  void* memory = nullptr;
  C10_CUDA_CHECK(cudaHostAlloc(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1)), cudaHostAllocDefault));
  return at::from_blob(memory, {bytes}, free_pinned, at::device(at::kCPU).dtype(at::kByte));
}

}  // namespace conclave
