#include "kernels/check.h"

#include <fmt/ranges.h>

namespace conclave {

void check_tensor(const char* op, const char* name, const at::Tensor& tensor, at::IntArrayRef sizes,
                  at::ScalarType dtype) {
  check_invariant(tensor.defined(), "{}: {} is undefined", op, name);
  check_invariant(tensor.sizes() == sizes, "{}: {} has sizes {}, expected {}", op, name, tensor.sizes().vec(),
                  sizes.vec());
  check_invariant(tensor.scalar_type() == dtype, "{}: {} is {}, expected {}", op, name,
                  c10::toString(tensor.scalar_type()), c10::toString(dtype));
  check_invariant(tensor.is_contiguous(), "{}: {} is not contiguous: strides {}", op, name, tensor.strides().vec());
}

void check_dims(const char* op, const char* name, const at::Tensor& tensor, int64_t dims) {
  check_invariant(tensor.defined(), "{}: {} is undefined", op, name);
  check_invariant(tensor.dim() == dims, "{}: {} has {} dims, expected {}", op, name, tensor.dim(), dims);
  check_invariant(tensor.is_contiguous(), "{}: {} is not contiguous: strides {}", op, name, tensor.strides().vec());
}

void check_rows(const char* op, const char* name, const at::Tensor& tensor) {
  check_invariant(tensor.defined() && tensor.dim() == 2, "{}: {} is not a matrix", op, name);
  check_invariant(tensor.size(1) <= 1 || tensor.stride(1) == 1, "{}: the last dim of {} has stride {}, expected 1", op,
                  name, tensor.stride(1));
}

void check_rows(const char* op, const char* name, const at::Tensor& tensor, int64_t rows, int64_t columns) {
  check_rows(op, name, tensor);
  check_invariant(tensor.size(0) == rows && tensor.size(1) == columns, "{}: {} has sizes {}x{}, expected {}x{}", op,
                  name, tensor.size(0), tensor.size(1), rows, columns);
}

void check_rows(const char* op, const char* name, const at::Tensor& tensor, int64_t rows, int64_t columns,
                at::ScalarType dtype) {
  check_rows(op, name, tensor, rows, columns);
  check_invariant(tensor.scalar_type() == dtype, "{}: {} is {}, expected {}", op, name,
                  c10::toString(tensor.scalar_type()), c10::toString(dtype));
}

}  // namespace conclave
