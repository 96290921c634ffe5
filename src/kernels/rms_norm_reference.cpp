#include <ATen/ATen.h>

#include "kernels/check.h"
#include "kernels/rms_norm.h"

namespace conclave::reference {

namespace {

// [T, C, H] of rows [T, C * H].
at::Tensor heads_of(const at::Tensor& rows_TH, const at::Tensor& weight_H) {
  return rows_TH.unflatten(1, {rows_TH.size(1) / weight_H.size(0), weight_H.size(0)});
}

// [T, C, 1]
at::Tensor of_heads(const at::Tensor& rstd_T, const at::Tensor& x_TCH) {
  return rstd_T.view({x_TCH.size(0), x_TCH.size(1), 1});
}

}  // namespace

void rms_norm_forward(at::Tensor y_TH, at::Tensor rstd_T, const at::Tensor& x_TH, const at::Tensor& weight_H,
                      double eps) {
  const at::Tensor x = heads_of(x_TH, weight_H).to(wide_dtype(x_TH.scalar_type()));
  of_heads(rstd_T, x).copy_(at::rsqrt(x.square().mean(-1, /*keepdim=*/true) + eps));
  rms_norm_repeat(y_TH, x_TH, rstd_T, weight_H);
}

void rms_norm_repeat(at::Tensor y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H) {
  const at::Tensor x = heads_of(x_TH, weight_H).to(wide_dtype(x_TH.scalar_type()));
  heads_of(y_TH, weight_H).copy_(weight_H * (x * of_heads(rstd_T, x)).to(x_TH.scalar_type()));
}

// With n = x * rstd: dn = grad_y * weight, dx = rstd * (dn - n * mean(dn * n)); the casts count as the identity.
void rms_norm_backward(at::Tensor grad_x_TH, at::Tensor grad_weight_H, const at::Tensor& grad_y_TH,
                       const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H, bool add) {
  const at::ScalarType wide = wide_dtype(x_TH.scalar_type());
  const at::Tensor x = heads_of(x_TH, weight_H).to(wide);
  const at::Tensor rstd = of_heads(rstd_T, x);
  const at::Tensor normalized = x * rstd;
  const at::Tensor grad_y = heads_of(grad_y_TH, weight_H).to(wide);
  const at::Tensor grad_normalized = grad_y * weight_H.to(wide);
  const at::Tensor grad_x = rstd * (grad_normalized - normalized * (grad_normalized * normalized).mean(-1, true));
  grad_weight_H.add_((grad_y * normalized).sum(at::IntArrayRef{0, 1}));
  const at::Tensor out = heads_of(grad_x_TH, weight_H);
  out.copy_(add ? out.to(wide) + grad_x : grad_x);
}

}  // namespace conclave::reference
