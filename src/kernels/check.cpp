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

}  // namespace conclave
