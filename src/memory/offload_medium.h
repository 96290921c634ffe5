// Where tensors go that leave the device for a while: numbered slots of equal size outside its memory. Copies run
// beside the computation; a slot is read only after its write was waited for.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace conclave {

class OffloadMedium {
 public:
  virtual ~OffloadMedium() = default;

  // Room for `slots` tensors of up to `bytes` each; what the slots held before is lost. Throws when there is no room.
  virtual void reserve(int64_t slots, int64_t bytes) = 0;

  // A copy under way. Calling it returns when the copy is done (CUDA: makes the current stream wait until it is) and
  // throws what went wrong with it.
  using Copy = std::function<void()>;
  // `tensor` is contiguous; it is let go as soon as its bytes are in the slot, on CUDA with the copy that was waited
  // for.
  virtual Copy write(int64_t slot, at::Tensor tensor) = 0;
  // Fills `tensor`, contiguous and as large as what was written.
  virtual Copy read(int64_t slot, at::Tensor tensor) = 0;
};

}  // namespace conclave
