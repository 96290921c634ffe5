#include "kernels/linear.h"

#include <ATen/ATen.h>

#include "kernels/check.h"

namespace conclave {

namespace {

// A matrix whose rows lie apart by any stride: BLAS reads and writes such a matrix in place.
void check_matrix(const char* op, const char* name, const at::Tensor& tensor, int64_t rows, int64_t columns) {
  check_invariant(tensor.defined() && tensor.dim() == 2, "{}: {} is not a matrix", op, name);
  check_invariant(tensor.size(0) == rows && tensor.size(1) == columns, "{}: {} has sizes {}x{}, expected {}x{}", op,
                  name, tensor.size(0), tensor.size(1), rows, columns);
  check_invariant(columns <= 1 || tensor.stride(1) == 1, "{}: the last dim of {} has stride {}, expected 1", op, name,
                  tensor.stride(1));
}

void check_same_dtype(const char* op, const at::Tensor& a, const at::Tensor& b) {
  check_invariant(a.scalar_type() == b.scalar_type(), "{}: dtypes differ: {} and {}", op,
                  c10::toString(a.scalar_type()), c10::toString(b.scalar_type()));
}

void check_forward(const char* op, const at::Tensor& y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM) {
  check_invariant(x_RM.dim() == 2 && w_NM.dim() == 2, "{}: x and w must be matrices", op);
  check_matrix(op, "x", x_RM, x_RM.size(0), w_NM.size(1));
  check_matrix(op, "w", w_NM, w_NM.size(0), w_NM.size(1));
  check_matrix(op, "y", y_RN, x_RM.size(0), w_NM.size(0));
  check_same_dtype(op, x_RM, w_NM);
  check_same_dtype(op, x_RM, y_RN);
}

}  // namespace

void linear_forward(at::Tensor y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM) {
  check_forward("linear_forward", y_RN, x_RM, w_NM);
  if (x_RM.size(0) == 0) return;
  at::mm_out(y_RN, x_RM, w_NM.t());
}

void linear_forward_add(at::Tensor y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM) {
  check_forward("linear_forward_add", y_RN, x_RM, w_NM);
  if (x_RM.size(0) == 0) return;
  at::addmm_out(y_RN, y_RN, x_RM, w_NM.t());
}

void linear_backward_input(at::Tensor grad_x_RM, const at::Tensor& grad_y_RN, const at::Tensor& w_NM) {
  check_forward("linear_backward_input", grad_y_RN, grad_x_RM, w_NM);
  if (grad_y_RN.size(0) == 0) return;
  at::mm_out(grad_x_RM, grad_y_RN, w_NM);
}

void linear_backward_input_add(at::Tensor grad_x_RM, const at::Tensor& grad_y_RN, const at::Tensor& w_NM) {
  check_forward("linear_backward_input_add", grad_y_RN, grad_x_RM, w_NM);
  if (grad_y_RN.size(0) == 0) return;
  at::addmm_out(grad_x_RM, grad_x_RM, grad_y_RN, w_NM);
}

void linear_backward_weight(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM,
                            bool accumulate) {
  constexpr auto op = "linear_backward_weight";
  check_invariant(grad_y_RN.dim() == 2 && x_RM.dim() == 2, "{}: grad_y and x must be matrices", op);
  check_matrix(op, "grad_y", grad_y_RN, x_RM.size(0), grad_y_RN.size(1));
  check_matrix(op, "x", x_RM, x_RM.size(0), x_RM.size(1));
  check_matrix(op, "grad_w", grad_w_NM, grad_y_RN.size(1), x_RM.size(1));
  check_same_dtype(op, grad_y_RN, x_RM);
  check_invariant(grad_w_NM.scalar_type() == wide_dtype(x_RM.scalar_type()), "{}: grad_w is {}", op,
                  c10::toString(grad_w_NM.scalar_type()));
  if (x_RM.size(0) == 0) {
    if (!accumulate) grad_w_NM.zero_();
  } else if (x_RM.scalar_type() != grad_w_NM.scalar_type()) {
    // No library multiplies bf16 into fp32 on every device we run on: the product is rounded to bf16 once, then added.
    const at::Tensor product = at::mm(grad_y_RN.t(), x_RM);
    accumulate ? grad_w_NM.add_(product) : grad_w_NM.copy_(product);
  } else if (accumulate) {
    at::addmm_out(grad_w_NM, grad_w_NM, grad_y_RN.t(), x_RM);
  } else {
    at::mm_out(grad_w_NM, grad_y_RN.t(), x_RM);
  }
}

}  // namespace conclave
