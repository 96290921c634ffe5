#include "kernels/linear.h"

#include <ATen/ATen.h>

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {

namespace {

void check_same_dtype(const char* op, const at::Tensor& a, const at::Tensor& b) {
  check_invariant(a.scalar_type() == b.scalar_type(), "{}: dtypes differ: {} and {}", op,
                  c10::toString(a.scalar_type()), c10::toString(b.scalar_type()));
}

bool is_rounded_when_read(const at::Tensor& x_RM, const at::Tensor& w_NM) {
  return x_RM.scalar_type() == at::kBFloat16 && w_NM.scalar_type() == at::kFloat;
}

void check_forward(const char* op, const at::Tensor& y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM) {
  check_invariant(x_RM.dim() == 2 && w_NM.dim() == 2, "{}: x and w must be matrices", op);
  check_rows(op, "x", x_RM, x_RM.size(0), w_NM.size(1));
  check_rows(op, "w", w_NM, w_NM.size(0), w_NM.size(1));
  check_rows(op, "y", y_RN, x_RM.size(0), w_NM.size(0));
  if (!is_rounded_when_read(x_RM, w_NM)) check_same_dtype(op, x_RM, w_NM);
  check_same_dtype(op, x_RM, y_RN);
}

}  // namespace

void linear_forward(at::Tensor y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM) {
  const KernelScope timed(Phase::products);
  check_forward("linear_forward", y_RN, x_RM, w_NM);
  if (x_RM.size(0) == 0) return;
  kernels_of(y_RN.device().type()).multiply(y_RN, x_RM, w_NM.t(), false);
}

void linear_forward_add(at::Tensor y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM) {
  const KernelScope timed(Phase::products);
  check_forward("linear_forward_add", y_RN, x_RM, w_NM);
  if (x_RM.size(0) == 0) return;
  kernels_of(y_RN.device().type()).multiply(y_RN, x_RM, w_NM.t(), true);
}

void linear_backward_input(at::Tensor grad_x_RM, const at::Tensor& grad_y_RN, const at::Tensor& w_NM) {
  const KernelScope timed(Phase::products);
  check_forward("linear_backward_input", grad_y_RN, grad_x_RM, w_NM);
  if (grad_y_RN.size(0) == 0) return;
  kernels_of(grad_x_RM.device().type()).multiply(grad_x_RM, grad_y_RN, w_NM, false);
}

void linear_backward_input_add(at::Tensor grad_x_RM, const at::Tensor& grad_y_RN, const at::Tensor& w_NM) {
  const KernelScope timed(Phase::products);
  check_forward("linear_backward_input_add", grad_y_RN, grad_x_RM, w_NM);
  if (grad_y_RN.size(0) == 0) return;
  kernels_of(grad_x_RM.device().type()).multiply(grad_x_RM, grad_y_RN, w_NM, true);
}

void linear_backward_weight(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM,
                            bool accumulate) {
  const KernelScope timed(Phase::products);
  constexpr auto op = "linear_backward_weight";
  check_invariant(grad_y_RN.dim() == 2 && x_RM.dim() == 2, "{}: grad_y and x must be matrices", op);
  check_rows(op, "grad_y", grad_y_RN, x_RM.size(0), grad_y_RN.size(1));
  check_rows(op, "x", x_RM, x_RM.size(0), x_RM.size(1));
  check_rows(op, "grad_w", grad_w_NM, grad_y_RN.size(1), x_RM.size(1));
  check_same_dtype(op, grad_y_RN, x_RM);
  check_invariant(grad_w_NM.scalar_type() == wide_dtype(x_RM.scalar_type()), "{}: grad_w is {}", op,
                  c10::toString(grad_w_NM.scalar_type()));
  if (x_RM.size(0) == 0) {
    if (!accumulate) grad_w_NM.zero_();
  } else if (x_RM.scalar_type() != grad_w_NM.scalar_type()) {
    kernels_of(x_RM.device().type()).weight_gradient(grad_w_NM, grad_y_RN, x_RM, accumulate);
  } else {
    kernels_of(grad_w_NM.device().type()).multiply(grad_w_NM, grad_y_RN.t(), x_RM, accumulate);
  }
}

at::Tensor grouped_product(const at::Tensor& row_RM, const at::Tensor& matrix_LMN, const at::Tensor& ends_L) {
  const KernelScope timed(Phase::products);
  return kernels_of(row_RM.device().type()).grouped_product(row_RM, matrix_LMN, ends_L);
}

void reference::multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  at::Tensor written = out;
  if (accumulate)
    at::addmm_out(written, written, a, b.to(a.scalar_type()));
  else
    at::mm_out(written, a, b.to(a.scalar_type()));
}

// A library that does not mix the two dtypes rounds the product to bf16 once.
void reference::weight_gradient(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM,
                                bool accumulate) {
  const at::Tensor rounded = at::mm(grad_y_RN.t(), x_RM);
  accumulate ? grad_w_NM.add_(rounded) : grad_w_NM.copy_(rounded);
}

at::Tensor reference::grouped_product(const at::Tensor& row_RM, const at::Tensor& matrix_LMN,
                                      const at::Tensor& ends_L) {
  return at::_grouped_mm(row_RM, matrix_LMN, ends_L);
}

}  // namespace conclave
