#include "checkpoint/lent_blocks.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <utility>

#include "base/error.h"
#include "device/device.h"
#include "memory/memory_category.h"

namespace conclave {
namespace {

int64_t room_for(const at::Tensor& block) {
  constexpr int64_t alignment = 64;
  return (static_cast<int64_t>(block.nbytes()) + alignment - 1) / alignment * alignment;
}

}  // namespace

class LentBlocks::DeviceReader {
 public:
  // Kept from save to save: there are 32 streams in all, and a collective or an offload may have the next one.
  explicit DeviceReader(at::Device device)
      : device_(device),
        streams_(device.type()),
        stream_(streams_.getStreamFromGlobalPool(device)),
        lent_(device.type()) {}

  // In the owner's thread: copies come after what its stream has been given so far.
  void begin() { lent_.record(streams_.getStream(device_)); }

  // In any thread; returns when it is done.
  void copy(const at::Tensor& to, const at::Tensor& from) const {
    const c10::StreamGuard here(stream_);
    lent_.block(stream_);
    to.copy_(from, /*non_blocking=*/true);
    stream_.synchronize();
  }

 private:
  at::Device device_;
  c10::impl::VirtualGuardImpl streams_;
  c10::Stream stream_;
  c10::Event lent_;
};

LentBlocks::LentBlocks() = default;
LentBlocks::~LentBlocks() = default;

void LentBlocks::lend(std::vector<at::Tensor> blocks) {
  const std::lock_guard lock(mutex_);
  check_invariant(!lent_, "{} blocks are lent, before {} more", blocks_.size(), blocks.size());
  blocks_ = std::move(blocks);
  if (!blocks_.empty() && !blocks_[0].is_cpu()) {
    if (!device_) device_ = std::make_unique<DeviceReader>(blocks_[0].device());
    device_->begin();
  }
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
  if (read_ == blocks_.size()) return {};
  at::Tensor block = blocks_[read_++];
  if (block.is_cpu()) return block;
  const auto bytes = static_cast<int64_t>(block.nbytes());
  if (!staged_.defined() || staged_.numel() < bytes) staged_ = device_of(block.device()).host_memory(bytes);
  at::Tensor staged = staged_.narrow(0, 0, bytes).view(block.scalar_type());
  copy(staged, block);
  return staged;
}

void LentBlocks::copy(const at::Tensor& to, const at::Tensor& block) {
  const at::NoGradGuard no_grad;
  if (!block.is_cpu()) return device_->copy(to, block);
  to.copy_(block);
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
    host_ = at::Tensor();
    const MemoryScope scope(MemoryCategory::checkpoint);
    host_ = device_of(blocks_[read_].device()).host_memory(bytes);  // the owner waits for these copies
  }
  int64_t begin = 0;
  for (size_t i = read_; i < blocks_.size(); ++i) {
    const at::Tensor in_host =
        host_.narrow(0, begin, static_cast<int64_t>(blocks_[i].nbytes())).view(blocks_[i].scalar_type());
    begin += room_for(blocks_[i]);
    copy(in_host, blocks_[i]);
    blocks_[i] = in_host;
  }
}

}  // namespace conclave
