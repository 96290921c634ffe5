#include <ATen/ATen.h>

#include "kernels/check.h"
#include "kernels/swiglu.h"

namespace conclave::reference {

void swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R) {
  const auto parts = gate_up_RJ.to(wide_dtype(gate_up_RJ.scalar_type())).chunk(2, 1);
  out_RI.copy_(at::silu(parts[0]) * parts[1] * weight_R.unsqueeze(1));
}

void swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                     const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R) {
  const at::ScalarType wide = wide_dtype(gate_up_RJ.scalar_type());
  const int64_t intermediate = grad_out_RI.size(1);
  const at::Tensor gate = gate_up_RJ.narrow(1, 0, intermediate).to(wide);
  const at::Tensor up = gate_up_RJ.narrow(1, intermediate, intermediate).to(wide);
  const at::Tensor grad_out = grad_out_RI.to(wide);
  const at::Tensor weight = weight_R.unsqueeze(1);

  const at::Tensor sigmoid = at::sigmoid(gate);
  const at::Tensor silu = gate * sigmoid;
  const at::Tensor grad_product = grad_out * weight;  // gradient of silu(gate) * up
  const at::Tensor grad_gate = grad_product * up * (sigmoid * (1 + gate * (1 - sigmoid)));
  const at::Tensor grad_up = grad_product * silu;
  const at::Tensor product = silu * up;
  const at::Tensor grad_weight = (grad_out * product).sum(1);

  // Everything is computed before anything is written: outputs may be inputs.
  grad_gate_up_RJ.narrow(1, 0, intermediate).copy_(grad_gate);
  grad_gate_up_RJ.narrow(1, intermediate, intermediate).copy_(grad_up);
  activation_RI.copy_(product * weight);
  grad_weight_R.copy_(grad_weight);
}

}  // namespace conclave::reference
