// Slots in pinned host memory, filled and read on a stream of their own beside the computation.
#pragma once

#include <c10/cuda/CUDAStream.h>

#include "memory/offload_medium.h"

namespace conclave {

class PinnedSlots final : public OffloadMedium {
 public:
  PinnedSlots();
  ~PinnedSlots() override;

  void reserve(int64_t slots, int64_t bytes) override;
  Copy write(int64_t slot, at::Tensor tensor) override;
  Copy read(int64_t slot, at::Tensor tensor) override;

 private:
  at::Tensor bytes_of(int64_t slot, const at::Tensor& tensor) const;
  Copy copy(const at::Tensor& to, const at::Tensor& from, const at::Tensor& on_device);

  c10::cuda::CUDAStream stream_;
  at::Tensor slots_;  // uint8 [slots, bytes], pinned
};

}  // namespace conclave
