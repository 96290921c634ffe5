#include "cuda/pinned_slots.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>

#include "base/error.h"
#include "cuda/pinned_memory.h"

namespace conclave {

PinnedSlots::PinnedSlots() : stream_(c10::cuda::getStreamFromPool()) {}

PinnedSlots::~PinnedSlots() {
  C10_CUDA_CHECK_WARN(cudaStreamSynchronize(stream_));  // copies may be under way
}

void PinnedSlots::reserve(int64_t slots, int64_t bytes) {
  stream_.synchronize();
  slots_.reset();
  slots_ = cuda::pinned_memory(slots * bytes).view({slots, bytes});
}

at::Tensor PinnedSlots::bytes_of(int64_t slot, const at::Tensor& tensor) const {
  const auto bytes = static_cast<int64_t>(tensor.nbytes());
  check_invariant(slot >= 0 && slot < slots_.size(0) && bytes <= slots_.size(1),
                  "{} bytes go to slot {} of {} slots of {} bytes", bytes, slot, slots_.size(0), slots_.size(1));
  return slots_[slot].narrow(0, 0, bytes);
}

OffloadMedium::Copy PinnedSlots::copy(const at::Tensor& to, const at::Tensor& from, const at::Tensor& on_device) {
  at::cuda::CUDAEvent ready;  // the tensor's memory is filled, or free, when the computation so far is done
  ready.record(c10::cuda::getCurrentCUDAStream());
  ready.block(stream_);
  {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    to.copy_(from, /*non_blocking=*/true);
  }
  auto done = std::make_shared<at::cuda::CUDAEvent>();
  done->record(stream_);
  // The tensor's memory is nobody else's until the computation waits for the copy: then it is free for what comes next
  // there, without a question to the device.
  return [done, on_device] { done->block(c10::cuda::getCurrentCUDAStream()); };
}

OffloadMedium::Copy PinnedSlots::write(int64_t slot, at::Tensor tensor) {
  if (tensor.numel() == 0) return [] {};
  return copy(bytes_of(slot, tensor), tensor.view(-1).view(at::kByte), tensor);
}

OffloadMedium::Copy PinnedSlots::read(int64_t slot, at::Tensor tensor) {
  if (tensor.numel() == 0) return [] {};
  return copy(tensor.view(-1).view(at::kByte), bytes_of(slot, tensor), tensor);
}

}  // namespace conclave
