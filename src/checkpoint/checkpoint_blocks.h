// A tensor of a resumable checkpoint from its first element to its last, in the blocks that it was hashed in: every
// byte is read once and held against its hash.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "checkpoint/checkpoint_reader.h"

namespace conclave {

// Told how many bytes more are done: for progress.
using BytesDone = std::function<void(uint64_t bytes)>;

// Elements [begin, begin + block.numel()) of the tensor: flat, of the stored type, on the CPU; valid during the call.
using UseBlock = std::function<void(int64_t begin, const at::Tensor& block)>;

// UserError as CheckpointReader::load. Memory: one block.
void for_each_block(CheckpointReader& checkpoint, const std::string& tensor, const UseBlock& use);

// Bytes of one tensor, and of all of them.
uint64_t bytes_of(const ManifestTensor& tensor);
uint64_t bytes_of_tensors(const Manifest& manifest);

}  // namespace conclave
