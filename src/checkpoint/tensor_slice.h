// What a rank owns of a named tensor, and what a tensor is called on disk. Sharding and checkpoints meet here: a flat
// shard is a list of slices.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace conclave {

// Elements [begin, begin + data.numel()) of the row-major flattened global tensor `name` of shape `shape`. Expert
// parameters are divided on dim 0 first, so a rank's part of them is such a range too.
struct TensorSlice {
  std::string name;
  std::vector<int64_t> shape;  // global
  int64_t begin = 0;
  at::Tensor data;  // 1-D, contiguous, a view of memory owned elsewhere
};

// A tensor of a Hugging Face file.
struct DiskTensor {
  std::string name;
  std::vector<int64_t> shape;
};

// A parameter as Hugging Face files hold it: `parts`' row-major concatenation is the parameter. The experts'
// gate_up [E, 2I, H], for example, is w1, w3 of expert 0, w1, w3 of expert 1, ... (Transformers 4 files), or one fused
// tensor (some Transformers 5 files).
struct DiskNames {
  std::string parameter;
  std::vector<int64_t> shape;
  std::vector<DiskTensor> parts;        // the names we write, and look for first
  std::vector<DiskTensor> alternative;  // another form accepted on reading; may be empty
};

}  // namespace conclave
