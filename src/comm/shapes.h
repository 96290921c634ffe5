// What the tensors of a collective must satisfy, and how work is divided among ranks. A violation is our own bug: an
// InvariantError with the values.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace conclave {

// `whole` [size * n] holds `part` [n] once per rank, in the same dtype; both contiguous.
void check_parts(const char* operation, const at::Tensor& whole, const at::Tensor& part, int size);
void check_whole(const char* operation, const at::Tensor& tensor);  // contiguous
void check_root(int root, int size);
// Splits are one per rank, not negative, and sum to the rows; the rank's own rows leave and arrive in equal number;
// rows are equally wide.
void check_splits(const at::Tensor& output, const at::Tensor& input, const std::vector<int64_t>& output_splits,
                  const std::vector<int64_t>& input_splits, int rank, int size);

// Bytes of one row (dim 0) of the tensor; also defined when it has no rows.
int64_t row_bytes(const at::Tensor& tensor);

// An all_reduce is done in one go (each rank gets every rank's tensor and sums) for two ranks or few bytes; else in
// parts: rank r sums the elements [part_begin(r), part_begin(r + 1)) and gives them to the others.
inline constexpr int64_t all_reduce_in_one_go_bytes = 64 * 1024;
bool all_reduce_in_one_go(int64_t bytes, int size);
inline int64_t part_begin(int64_t count, int part, int parts) {
  return count / parts * part + count % parts * part / parts;
}

}  // namespace conclave
