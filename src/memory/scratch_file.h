// Slots in a memory-mapped scratch file: what stands for the host's memory when the computation itself runs on the CPU.
// The file has no name after it was made, so nothing is left behind however the process ends. Its space is reserved
// before it is needed: a full disk shows when the slots are reserved, not in the middle of a step. One thread of its
// own copies. Pages leave this process's memory once they are written; when they go to the disk is the kernel's affair.
#pragma once

#include <filesystem>

#include "base/background_thread.h"
#include "memory/offload_medium.h"

namespace conclave {

class ScratchFile final : public OffloadMedium {
 public:
  // `folder` is made when it is not there. Nothing is written before reserve().
  explicit ScratchFile(std::filesystem::path folder) : folder_(std::move(folder)) {}
  ~ScratchFile() override;

  // UserError when the folder cannot be written; std::runtime_error, naming folder, bytes needed and bytes free, when
  // the disk has no room.
  void reserve(int64_t slots, int64_t bytes) override;
  Copy write(int64_t slot, at::Tensor tensor) override;
  Copy read(int64_t slot, at::Tensor tensor) override;

 private:
  void unmap();
  char* slot_begin(int64_t slot, const at::Tensor& tensor) const;

  std::filesystem::path folder_;
  int64_t slots_ = 0;
  int64_t slot_bytes_ = 0;  // a multiple of the page size
  char* mapped_ = nullptr;
  BackgroundThread thread_;  // last: ends before the mapping does
};

}  // namespace conclave
