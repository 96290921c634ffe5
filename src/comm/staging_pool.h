// Host buffers for data on its way between ranks, used again and again: in the steady state a communicator does not
// allocate.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <mutex>
#include <vector>

namespace conclave {

class StagingPool {
 public:
  // uint8 [at least `bytes`], contents undefined: the smallest free buffer that is large enough, else a new one in
  // place of the largest free one.
  at::Tensor take(int64_t bytes);
  void give_back(at::Tensor buffer);
  int64_t free_bytes() const;  // held for the next use

 private:
  mutable std::mutex mutex_;
  std::vector<at::Tensor> free_;  // by size, ascending
};

}  // namespace conclave
