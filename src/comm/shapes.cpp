#include "comm/shapes.h"

#include <fmt/ranges.h>

#include <numeric>

#include "base/error.h"

namespace conclave {

void check_parts(const char* operation, const at::Tensor& whole, const at::Tensor& part, int size) {
  check_whole(operation, whole);
  check_whole(operation, part);
  check_invariant(whole.scalar_type() == part.scalar_type() && whole.numel() == size * part.numel(),
                  "{} over {} ranks of {} elements ({}) against {} elements ({})", operation, size, whole.numel(),
                  at::toString(whole.scalar_type()), part.numel(), at::toString(part.scalar_type()));
}

void check_whole(const char* operation, const at::Tensor& tensor) {
  check_invariant(tensor.defined() && tensor.is_contiguous(), "{} of a tensor that is not contiguous", operation);
}

void check_root(int root, int size) {
  check_invariant(root >= 0 && root < size, "broadcast from rank {} of {}", root, size);
}

void check_splits(const at::Tensor& output, const at::Tensor& input, const std::vector<int64_t>& output_splits,
                  const std::vector<int64_t>& input_splits, int rank, int size) {
  check_whole("all_to_all", output);
  check_whole("all_to_all", input);
  const auto fits = [size](const std::vector<int64_t>& splits, const at::Tensor& tensor) {
    for (int64_t rows : splits)
      if (rows < 0) return false;
    return tensor.dim() > 0 && static_cast<int>(splits.size()) == size &&
           std::accumulate(splits.begin(), splits.end(), int64_t{0}) == tensor.size(0);
  };
  check_invariant(
      fits(output_splits, output) && fits(input_splits, input) && output_splits[rank] == input_splits[rank] &&
          row_bytes(output) == row_bytes(input) && output.scalar_type() == input.scalar_type(),
      "all_to_all over {} ranks on rank {}: input [{}] by [{}] of {} B a row, output [{}] by [{}] of {} B a row", size,
      rank, fmt::join(input.sizes(), ","), fmt::join(input_splits, ","), row_bytes(input),
      fmt::join(output.sizes(), ","), fmt::join(output_splits, ","), row_bytes(output));
}

int64_t row_bytes(const at::Tensor& tensor) {
  int64_t bytes = tensor.element_size();
  for (int64_t dim = 1; dim < tensor.dim(); ++dim) bytes *= tensor.size(dim);
  return bytes;
}

}  // namespace conclave
