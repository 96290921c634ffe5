#include "comm/staging_pool.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace conclave {

at::Tensor StagingPool::take(int64_t bytes) {
  std::lock_guard lock(mutex_);
  const auto fitting =
      std::find_if(free_.begin(), free_.end(), [bytes](const at::Tensor& buffer) { return buffer.numel() >= bytes; });
  if (fitting != free_.end()) {
    at::Tensor buffer = std::move(*fitting);
    free_.erase(fitting);
    return buffer;
  }
  if (!free_.empty()) free_.pop_back();
  return at::empty({bytes}, at::kByte);
}

void StagingPool::give_back(at::Tensor buffer) {
  std::lock_guard lock(mutex_);
  const auto larger =
      std::find_if(free_.begin(), free_.end(), [&](const at::Tensor& other) { return other.numel() > buffer.numel(); });
  free_.insert(larger, std::move(buffer));
}

int64_t StagingPool::free_bytes() const {
  std::lock_guard lock(mutex_);
  int64_t bytes = 0;
  for (const at::Tensor& buffer : free_) bytes += buffer.numel();
  return bytes;
}

}  // namespace conclave
