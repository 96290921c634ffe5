// SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020) with the routing weight applied inside: out = silu(gate) *
// up * weight. With the weight here and not after the down projection, backward needs no expert output (Megatron-Core
// does the same).
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

// out [R,I] = silu(gate) * up * weight[r], gate_up [R,2I] with the gate half first, weight [R] fp32. Arithmetic in
// fp32, out in gate_up's dtype.
void swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R);

// From grad_out [R,I]: grad_gate_up [R,2I] (may be gate_up itself), activation [R,I] = forward's output once more (may
// be grad_out itself), grad_weight [R] fp32 = sum_i grad_out * silu(gate) * up.
void swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                     const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R);

namespace reference {
void swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R);
void swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                     const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R);
}  // namespace reference

}  // namespace conclave
