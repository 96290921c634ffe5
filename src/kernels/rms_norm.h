// Root mean square normalization (Zhang and Sennrich, 2019) as Transformers computes it: x is normalized in fp32, cast
// back to its dtype, and multiplied by the weight. It normalizes whole rows, or each of the C heads in a row of C * H
// elements, which then share the weight. Rows may lie any distance apart.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

// y [T, C * H] = weight [H] * cast(x * rstd), rstd [T, C] fp32 = 1 / sqrt(mean(x^2) + eps); with one head rstd may be
// [T]. x, y, weight in one dtype, fp32 or bf16.
void rms_norm_forward(at::Tensor y_TH, at::Tensor rstd_T, const at::Tensor& x_TH, const at::Tensor& weight_H,
                      double eps);

// y again from a kept rstd.
void rms_norm_repeat(at::Tensor y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H);

// grad_x += the gradient that arrives through y (the residual stream's gradient is already there); grad_weight [H] fp32
// +=; undefined: nobody wants it.
void rms_norm_backward(at::Tensor grad_x_TH, at::Tensor grad_weight_H, const at::Tensor& grad_y_TH,
                       const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H);

// grad, with respect to y, becomes that with respect to x; grad_weight [H] fp32 +=.
void rms_norm_backward_(at::Tensor grad_TH, at::Tensor grad_weight_H, const at::Tensor& x_TH, const at::Tensor& rstd_T,
                        const at::Tensor& weight_H);

namespace reference {
void rms_norm_forward(at::Tensor y_TH, at::Tensor rstd_T, const at::Tensor& x_TH, const at::Tensor& weight_H,
                      double eps);
void rms_norm_repeat(at::Tensor y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H);
// grad_x += or, without `add`, =.
void rms_norm_backward(at::Tensor grad_x_TH, at::Tensor grad_weight_H, const at::Tensor& grad_y_TH,
                       const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H, bool add = true);
}  // namespace reference

}  // namespace conclave
