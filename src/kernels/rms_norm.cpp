#include "kernels/rms_norm.h"

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {

namespace {

void check_norm(const char* op, const at::Tensor& y_TH, const at::Tensor& rstd_T, const at::Tensor& x_TH,
                const at::Tensor& weight_H) {
  check_dims(op, "x", x_TH, 2);
  const at::ScalarType dtype = x_TH.scalar_type();
  check_tensor(op, "y", y_TH, x_TH.sizes(), dtype);
  check_tensor(op, "rstd", rstd_T, {x_TH.size(0)}, wide_dtype(dtype));
  check_tensor(op, "weight", weight_H, {x_TH.size(1)}, dtype);
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
  check_norm(op, grad_y_TH, rstd_T, x_TH, weight_H);
  check_tensor(op, "grad_x", grad_x_TH, x_TH.sizes(), x_TH.scalar_type());
  check_tensor(op, "grad_weight", grad_weight_H, weight_H.sizes(), wide_dtype(x_TH.scalar_type()));
  kernels_of(x_TH).rms_norm_backward(grad_x_TH, grad_weight_H, grad_y_TH, x_TH, rstd_T, weight_H);
}

}  // namespace conclave
