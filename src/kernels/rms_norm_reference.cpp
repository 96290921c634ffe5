#include <ATen/ATen.h>

#include "kernels/check.h"
#include "kernels/rms_norm.h"

namespace conclave::reference {

void rms_norm_forward(at::Tensor y_TH, at::Tensor rstd_T, const at::Tensor& x_TH, const at::Tensor& weight_H,
                      double eps) {
  const at::Tensor x = x_TH.to(wide_dtype(x_TH.scalar_type()));
  rstd_T.copy_(at::rsqrt(x.square().mean(1) + eps));
  rms_norm_repeat(y_TH, x_TH, rstd_T, weight_H);
}

void rms_norm_repeat(at::Tensor y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H) {
  const at::Tensor x = x_TH.to(wide_dtype(x_TH.scalar_type()));
  y_TH.copy_(weight_H * (x * rstd_T.unsqueeze(1)).to(x_TH.scalar_type()));
}

// With n = x * rstd: dn = grad_y * weight, dx = rstd * (dn - n * mean(dn * n)); the casts count as the identity.
void rms_norm_backward(at::Tensor grad_x_TH, at::Tensor grad_weight_H, const at::Tensor& grad_y_TH,
                       const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H) {
  const at::ScalarType wide = wide_dtype(x_TH.scalar_type());
  const at::Tensor rstd = rstd_T.unsqueeze(1);
  const at::Tensor normalized = x_TH.to(wide) * rstd;
  const at::Tensor grad_y = grad_y_TH.to(wide);
  const at::Tensor grad_normalized = grad_y * weight_H.to(wide);
  const at::Tensor grad_x = rstd * (grad_normalized - normalized * (grad_normalized * normalized).mean(1, true));
  grad_weight_H.add_((grad_y * normalized).sum(0));
  grad_x_TH.copy_(grad_x_TH.to(wide) + grad_x);
}

}  // namespace conclave::reference
