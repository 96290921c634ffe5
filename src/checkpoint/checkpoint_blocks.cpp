#include "checkpoint/checkpoint_blocks.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace conclave {

uint64_t bytes_of(const ManifestTensor& tensor) {
  return static_cast<uint64_t>(checked_numel(tensor.shape).value()) * bits_of(tensor.dtype) / 8;
}

uint64_t bytes_of_tensors(const Manifest& manifest) {
  uint64_t sum = 0;
  for (const auto& [name, tensor] : manifest.tensors) sum += bytes_of(tensor);
  return sum;
}

void for_each_block(CheckpointReader& checkpoint, const std::string& tensor, const UseBlock& use) {
  const Manifest& manifest = checkpoint.manifest();
  const ManifestTensor& stored = manifest.tensors.at(tensor);
  const auto per_block = static_cast<int64_t>(manifest.hash_block_bytes * 8 / bits_of(stored.dtype));
  at::Tensor memory;
  for (const Piece& piece : stored.pieces) {
    for (int64_t begin = piece.begin; begin < piece.end; begin += per_block) {
      const int64_t count = std::min(per_block, piece.end - begin);
      if (!memory.defined() || memory.numel() < count)
        memory = at::empty({count}, at::TensorOptions(scalar_type_of(stored.dtype).value()));
      const TensorSlice block{tensor, stored.shape, begin, memory.narrow(0, 0, count)};
      checkpoint.load({&block, 1});
      use(begin, block.data);
    }
  }
}

}  // namespace conclave
