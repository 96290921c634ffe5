// What the entries of the kernels demand of their tensors; a breach is a bug of the caller.
#pragma once

#include <ATen/core/Tensor.h>

#include "base/error.h"

namespace conclave {

// Defined, of these sizes and this dtype, contiguous.
void check_tensor(const char* op, const char* name, const at::Tensor& tensor, at::IntArrayRef sizes,
                  at::ScalarType dtype);

// Defined, with this number of dims, contiguous; the first tensor of an op, from which the sizes of the others follow.
void check_dims(const char* op, const char* name, const at::Tensor& tensor, int64_t dims);

// A matrix whose rows may lie any distance apart: its last dim is contiguous.
void check_rows(const char* op, const char* name, const at::Tensor& tensor);
void check_rows(const char* op, const char* name, const at::Tensor& tensor, int64_t rows, int64_t columns);
void check_rows(const char* op, const char* name, const at::Tensor& tensor, int64_t rows, int64_t columns,
                at::ScalarType dtype);

// The dtype that sums, weights and statistics beside a tensor of `dtype` have: fp32, or double for double (references
// in tests).
inline at::ScalarType wide_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace conclave
