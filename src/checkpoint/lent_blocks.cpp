#include "checkpoint/lent_blocks.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <utility>

#include "base/error.h"
#include "memory/memory_category.h"

namespace conclave {
namespace {

int64_t room_for(const at::Tensor& block) {
  constexpr int64_t alignment = 64;
  return (static_cast<int64_t>(block.nbytes()) + alignment - 1) / alignment * alignment;
}

}  // namespace

void LentBlocks::lend(std::vector<at::Tensor> blocks) {
  const std::lock_guard lock(mutex_);
  check_invariant(!lent_, "{} blocks are lent, before {} more", blocks_.size(), blocks.size());
  blocks_ = std::move(blocks);
  read_ = 0;
  lent_ = true;
  is_wanted_ = false;
}

void LentBlocks::take_back() {
  std::unique_lock lock(mutex_);
  is_wanted_ = true;
  changed_.wait(lock, [&] { return !lent_; });
}

at::Tensor LentBlocks::next() {
  const std::lock_guard lock(mutex_);
  if (lent_ && is_wanted_) {
    copy_rest();
    lent_ = false;
    changed_.notify_all();
  }
  return read_ < blocks_.size() ? blocks_[read_++] : at::Tensor();
}

void LentBlocks::end() {
  const std::lock_guard lock(mutex_);
  blocks_.clear();
  read_ = 0;
  lent_ = false;
  changed_.notify_all();
}

void LentBlocks::copy_rest() {
  int64_t bytes = 0;
  for (size_t i = read_; i < blocks_.size(); ++i) bytes += room_for(blocks_[i]);
  if (bytes > 0 && (!host_.defined() || host_.numel() < bytes)) {
    const MemoryScope scope(MemoryCategory::checkpoint);
    host_ = at::Tensor();
    host_ = at::empty({bytes}, at::kByte);
  }
  const at::NoGradGuard no_grad;
  int64_t begin = 0;
  for (size_t i = read_; i < blocks_.size(); ++i) {
    const at::Tensor copy =
        host_.narrow(0, begin, static_cast<int64_t>(blocks_[i].nbytes())).view(blocks_[i].scalar_type());
    begin += room_for(blocks_[i]);
    copy.copy_(blocks_[i]);
    blocks_[i] = copy;
  }
}

}  // namespace conclave
