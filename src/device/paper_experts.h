// What experts compute between their products, on paper.
#pragma once

#include "kernels/clamped_swiglu.h"

namespace conclave::paper {

void swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R);
void swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                     const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R);
void clamped_swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                            const ClampedSwiglu&);
void clamped_swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                             const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                             const ClampedSwiglu&);
void add_bias(const at::Tensor& y_RN, const at::Tensor& bias_LN, const at::Tensor& scale_R, const at::Tensor&);
void bias_backward(const at::Tensor& grad_bias_LN, const at::Tensor& grad_y_RN, bool, const at::Tensor& scale_R,
                   const at::Tensor&);
void bias_scale_backward_add(const at::Tensor& grad_scale_R, const at::Tensor& grad_y_RN, const at::Tensor& bias_LN,
                             const at::Tensor&);

}  // namespace conclave::paper
