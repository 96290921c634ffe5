// What an expert computes between its two products.
#pragma once

#include "kernels/swiglu.h"
#include "moe/experts.h"

namespace conclave {

inline void activate(const at::Tensor& out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                     const ExpertForm& form) {
  if (form.clamped)
    clamped_swiglu_forward(out_RI, gate_up_RJ, weight_R, *form.clamped);
  else
    swiglu_forward(out_RI, gate_up_RJ, weight_R);
}

// In place: over the gradient of the activation comes the activation, over the pre-activation its gradient.
inline void activate_backward(const at::Tensor& gate_up_RJ, const at::Tensor& activation_RI,
                              const at::Tensor& grad_weight_R, const at::Tensor& weight_R, const ExpertForm& form) {
  if (form.clamped)
    clamped_swiglu_backward(gate_up_RJ, activation_RI, grad_weight_R, activation_RI, gate_up_RJ, weight_R,
                            *form.clamped);
  else
    swiglu_backward(gate_up_RJ, activation_RI, grad_weight_R, activation_RI, gate_up_RJ, weight_R);
}

}  // namespace conclave
