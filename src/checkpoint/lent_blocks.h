// Memory that its owner lends to a thread that reads it block by block, and takes back when it wants to change it. What
// was not read by then is copied to host memory first, so that the owner waits for a copy of the rest at most, and for
// nothing when all was read. Training lends its shards to the thread that writes a checkpoint until the next update.
#pragma once

#include <ATen/core/Tensor.h>

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace conclave {

class LentBlocks {
 public:
  LentBlocks();
  ~LentBlocks();

  // The owner's, with nothing lent. `blocks`: 1-D, contiguous, of any type and on any device, always the same; read in
  // their order. From a device they are copied on a stream of the reader's own, which comes after what the owner's
  // stream has been given so far.
  void lend(std::vector<at::Tensor> blocks);
  // The owner's: waits until the memory lent is not read any more, be it because all of it was or because the rest was
  // copied. Nothing happens when nothing is lent.
  void take_back();

  // The reader's: the next block, in host memory, which stays as it is until the next call; one that is not defined
  // after the last.
  at::Tensor next();
  // The reader's last call, also when it gives up: nothing is lent any more.
  void end();

 private:
  class DeviceReader;
  void copy_rest();  // of blocks_, mutex_ held
  void copy(const at::Tensor& to, const at::Tensor& block);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<at::Tensor> blocks_;
  size_t read_ = 0;                       // blocks given to the reader
  bool lent_ = false;                     // the owner's memory may still be read
  bool is_wanted_ = false;                // by the owner
  at::Tensor host_;                       // uint8: room for copies, kept for the next time
  at::Tensor staged_;                     // uint8, pinned: room for the block that is read from a device
  std::unique_ptr<DeviceReader> device_;  // of blocks that are not in host memory; made once
};

}  // namespace conclave
