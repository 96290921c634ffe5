// Everything that is wrong with a resumable checkpoint. A reader stops at the first flaw; who asks whether months of
// work are safe wants all of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_blocks.h"

namespace conclave {

struct CheckpointFlaw {
  std::string file;    // in the checkpoint's folder
  std::string tensor;  // empty: the flaw is of the file as a whole
  std::string reason;
};

struct CheckpointVerdict {
  std::vector<CheckpointFlaw> flaws;  // none: every byte of every tensor is what was saved
  size_t tensors = 0;
  size_t files = 0;
  uint64_t bytes = 0;  // that were read and hashed
};

// Checks structure, presence, lengths and headers of all files, and hashes every block, each file from its begin to its
// end. Memory: one block. UserError when there is no checkpoint's folder at all.
CheckpointVerdict verify_checkpoint(const std::filesystem::path& checkpoint, const BytesDone& done);

}  // namespace conclave
