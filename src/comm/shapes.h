// What the tensors of a collective must satisfy. A violation is our own bug: an InvariantError with the values.
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

}  // namespace conclave
