// Biases of linear layers, and of experts whose rows lie one expert after the other. Rows may have a scale each: a
// routing weight that is applied before an expert's down projection (kernels/swiglu.h) must reach its bias too.
//
// L biases: the rows of bias l end before ends[l], int32 [L]; undefined with one bias, which is that of all rows. A
// bias may be fp32 where rows are bf16: it is rounded as it is read, as linear layers do with their weights.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

// y [R,N] += scale[r] * bias, of the row's own bias [L,N]; scale [R] fp32, undefined: 1. Rounded once. Rows of y may
// lie any distance apart.
void add_bias(at::Tensor y_RN, const at::Tensor& bias_LN, const at::Tensor& scale_R = {},
              const at::Tensor& ends_L = {});

// grad_bias [L,N] fp32 = or += the sum over the bias's rows of scale[r] * grad_y[r]. Without rows: zero, or as it was.
void bias_backward(at::Tensor grad_bias_LN, const at::Tensor& grad_y_RN, bool accumulate,
                   const at::Tensor& scale_R = {}, const at::Tensor& ends_L = {});

// grad_scale [R] fp32 += grad_y[r] . bias.
void bias_scale_backward_add(at::Tensor grad_scale_R, const at::Tensor& grad_y_RN, const at::Tensor& bias_LN,
                             const at::Tensor& ends_L = {});

namespace reference {
void add_bias(const at::Tensor& y_RN, const at::Tensor& bias_LN, const at::Tensor& scale_R, const at::Tensor& ends_L);
void bias_backward(const at::Tensor& grad_bias_LN, const at::Tensor& grad_y_RN, bool accumulate,
                   const at::Tensor& scale_R, const at::Tensor& ends_L);
void bias_scale_backward_add(const at::Tensor& grad_scale_R, const at::Tensor& grad_y_RN, const at::Tensor& bias_LN,
                             const at::Tensor& ends_L);
}  // namespace reference

}  // namespace conclave
