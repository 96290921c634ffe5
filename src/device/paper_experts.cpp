#include "device/paper_experts.h"

#include "device/paper_pass.h"

namespace conclave::paper {

void swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R) {
  pass({out_RI, gate_up_RJ, weight_R});
}

void swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                     const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R) {
  pass({grad_gate_up_RJ, activation_RI, grad_weight_R, grad_out_RI, gate_up_RJ, weight_R});
}

void clamped_swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                            const ClampedSwiglu&) {
  swiglu_forward(out_RI, gate_up_RJ, weight_R);
}

void clamped_swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                             const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                             const ClampedSwiglu&) {
  swiglu_backward(grad_gate_up_RJ, activation_RI, grad_weight_R, grad_out_RI, gate_up_RJ, weight_R);
}

void add_bias(const at::Tensor& y_RN, const at::Tensor& bias_LN, const at::Tensor& scale_R, const at::Tensor&) {
  pass({y_RN, y_RN, bias_LN, scale_R});
}

void bias_backward(const at::Tensor& grad_bias_LN, const at::Tensor& grad_y_RN, bool, const at::Tensor& scale_R,
                   const at::Tensor&) {
  pass({grad_bias_LN, grad_y_RN, scale_R});
}

void bias_scale_backward_add(const at::Tensor& grad_scale_R, const at::Tensor& grad_y_RN, const at::Tensor& bias_LN,
                             const at::Tensor&) {
  pass({grad_scale_R, grad_scale_R, grad_y_RN, bias_LN});
}

}  // namespace conclave::paper
