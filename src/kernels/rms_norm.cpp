#include "kernels/rms_norm.h"

#include <ATen/ATen.h>

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {

namespace {

void check_norm(const char* op, const at::Tensor& y_TH, const at::Tensor& rstd_T, const at::Tensor& x_TH,
                const at::Tensor& weight_H) {
  check_rows(op, "x", x_TH);
  const at::ScalarType dtype = x_TH.scalar_type();
  const int64_t tokens = x_TH.size(0), columns = x_TH.size(1);
  check_rows(op, "y", y_TH, tokens, columns, dtype);
  check_tensor(op, "weight", weight_H, {weight_H.numel()}, dtype);
  check_invariant(weight_H.numel() > 0 && columns % weight_H.numel() == 0, "{}: rows of {} in heads of {}", op, columns,
                  weight_H.numel());
  const int64_t heads = columns / weight_H.numel();
  if (rstd_T.dim() == 1 && heads == 1)
    check_tensor(op, "rstd", rstd_T, {tokens}, wide_dtype(dtype));
  else
    check_tensor(op, "rstd", rstd_T, {tokens, heads}, wide_dtype(dtype));
}

void check_backward(const char* op, const at::Tensor& grad_y_TH, const at::Tensor& grad_weight_H,
                    const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H) {
  check_norm(op, grad_y_TH, rstd_T, x_TH, weight_H);
  check_tensor(op, "grad_weight", grad_weight_H, weight_H.sizes(), wide_dtype(x_TH.scalar_type()));
}

// A by-product of the pass, which a frozen weight has thrown away.
at::Tensor place_for(const at::Tensor& grad_weight_H, const at::Tensor& weight_H) {
  if (grad_weight_H.defined()) return grad_weight_H;
  return at::zeros(weight_H.sizes(), weight_H.options().dtype(wide_dtype(weight_H.scalar_type())));
}

}  // namespace

void rms_norm_forward(at::Tensor y_TH, at::Tensor rstd_T, const at::Tensor& x_TH, const at::Tensor& weight_H,
                      double eps) {
  const KernelScope timed(Phase::kernels);
  check_norm("rms_norm_forward", y_TH, rstd_T, x_TH, weight_H);
  kernels_of(x_TH).rms_norm_forward(y_TH, rstd_T, x_TH, weight_H, eps);
}

void rms_norm_repeat(at::Tensor y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H) {
  const KernelScope timed(Phase::kernels);
  check_norm("rms_norm_repeat", y_TH, rstd_T, x_TH, weight_H);
  kernels_of(x_TH).rms_norm_repeat(y_TH, x_TH, rstd_T, weight_H);
}

void rms_norm_backward(at::Tensor grad_x_TH, at::Tensor grad_weight_H, const at::Tensor& grad_y_TH,
                       const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "rms_norm_backward";
  grad_weight_H = place_for(grad_weight_H, weight_H);
  check_backward(op, grad_y_TH, grad_weight_H, x_TH, rstd_T, weight_H);
  check_rows(op, "grad_x", grad_x_TH, x_TH.size(0), x_TH.size(1), x_TH.scalar_type());
  kernels_of(x_TH).rms_norm_backward(grad_x_TH, grad_weight_H, grad_y_TH, x_TH, rstd_T, weight_H, /*add=*/true);
}

void rms_norm_backward_(at::Tensor grad_TH, at::Tensor grad_weight_H, const at::Tensor& x_TH, const at::Tensor& rstd_T,
                        const at::Tensor& weight_H) {
  const KernelScope timed(Phase::kernels);
  grad_weight_H = place_for(grad_weight_H, weight_H);
  check_backward("rms_norm_backward_", grad_TH, grad_weight_H, x_TH, rstd_T, weight_H);
  kernels_of(x_TH).rms_norm_backward(grad_TH, grad_weight_H, grad_TH, x_TH, rstd_T, weight_H, /*add=*/false);
}

}  // namespace conclave
