// Two sets of named tensors held against each other, element by element: resumable checkpoints, Hugging Face folders,
// or one of each.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_blocks.h"
#include "checkpoint/hugging_face_files.h"
#include "checkpoint/tensor_slice.h"

namespace conclave {

// A tensor that lies in files.
struct FiledTensor {
  StoredDtype dtype = StoredDtype::F32;
  std::vector<int64_t> shape;
  // Fills `out` (flat, of the tensor's type) with elements [begin, begin + out.numel()).
  std::function<void(int64_t begin, const at::Tensor& out)> read;
};
using FiledTensors = std::map<std::string, FiledTensor>;

// The source outlives the tensors.
FiledTensors tensors_of(CheckpointReader& checkpoint);
FiledTensors tensors_of(const HuggingFaceFiles& files);
// A checkpoint's parameters under the names, and in the form, in which `files` hold them. `names` outlives them.
FiledTensors tensors_of(CheckpointReader& checkpoint, std::span<const DiskNames> names, const HuggingFaceFiles& files);

enum class Comparison {
  equal,    // bit for bit
  differs,  // of one shape, with other values or another type
  reshaped,
  only_in_first,
  only_in_second,
};

struct TensorDifference {
  std::string name;
  Comparison result = Comparison::equal;
  StoredDtype dtypes[2] = {};      // of the first and the second; only of one that has the tensor
  std::vector<int64_t> shapes[2];  // likewise
  int64_t elements = 0;            // that were compared
  int64_t unequal = 0;             // of them, with another value; a NaN is unequal to all but the same bits
  double largest = 0;              // |first - second|; NaN when one of the two is
  double mean = 0;                 // of |first - second| over all elements
};

// In the order of names. Memory: two blocks of `block_bytes` and their differences. `done` is told the bytes read of
// both.
std::vector<TensorDifference> compare(const FiledTensors& first, const FiledTensors& second, const BytesDone& done);

}  // namespace conclave
