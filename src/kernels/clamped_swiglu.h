// The activation of gpt-oss's experts: columns of gate and up alternate, both are clamped, and
//
//   out = (up + 1) * gate * sigmoid(slope * gate) * weight
//
// with the routing weight inside, as in kernels/swiglu.h.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

struct ClampedSwiglu {
  double limit = 7.0;    // of gate from above, and of up from both sides
  double slope = 1.702;  // of the sigmoid
};

// out [R,I] from gate_up [R,2I], weight [R] fp32. Arithmetic in fp32, out in gate_up's dtype.
void clamped_swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                            const ClampedSwiglu& shape);

// From grad_out [R,I]: grad_gate_up [R,2I] (may be gate_up itself), activation [R,I] = forward's output once more (may
// be grad_out itself), grad_weight [R] fp32. What was clamped gets no gradient.
void clamped_swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                             const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                             const ClampedSwiglu& shape);

namespace reference {
void clamped_swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                            const ClampedSwiglu& shape);
void clamped_swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                             const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                             const ClampedSwiglu& shape);
}  // namespace reference

}  // namespace conclave
