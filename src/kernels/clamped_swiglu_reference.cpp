#include <ATen/ATen.h>

#include "kernels/check.h"
#include "kernels/clamped_swiglu.h"

namespace conclave::reference {
namespace {

// Columns 0, 2, 4, ... or 1, 3, 5, ... of [R,2I].
at::Tensor every_other(const at::Tensor& gate_up_RJ, int64_t first) {
  return gate_up_RJ.slice(1, first, gate_up_RJ.size(1), 2);
}

struct Clamped {
  at::Tensor gate_RI, up_RI, sigmoid_RI;

  Clamped(const at::Tensor& gate_up_RJ, const ClampedSwiglu& shape) {
    const at::Tensor wide_RJ = gate_up_RJ.to(wide_dtype(gate_up_RJ.scalar_type()));
    gate_RI = every_other(wide_RJ, 0).clamp_max(shape.limit);
    up_RI = every_other(wide_RJ, 1).clamp(-shape.limit, shape.limit);
    sigmoid_RI = at::sigmoid(gate_RI * shape.slope);
  }
};

}  // namespace

void clamped_swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                            const ClampedSwiglu& shape) {
  const Clamped c(gate_up_RJ, shape);
  out_RI.copy_((c.up_RI + 1) * (c.gate_RI * c.sigmoid_RI) * weight_R.unsqueeze(1));
}

void clamped_swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                             const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                             const ClampedSwiglu& shape) {
  const Clamped c(gate_up_RJ, shape);
  const at::Tensor grad_out = grad_out_RI.to(c.gate_RI.scalar_type());
  const at::Tensor glu = c.gate_RI * c.sigmoid_RI, product = (c.up_RI + 1) * glu;
  const at::Tensor grad_product = grad_out * weight_R.unsqueeze(1);
  const at::Tensor slope = c.sigmoid_RI * (1 + shape.slope * c.gate_RI * (1 - c.sigmoid_RI));
  const at::Tensor gate_passes = every_other(gate_up_RJ, 0) <= shape.limit;
  const at::Tensor up_passes = every_other(gate_up_RJ, 1).abs() <= shape.limit;
  const at::Tensor grad_gate = grad_product * (c.up_RI + 1) * slope * gate_passes;
  const at::Tensor grad_up = grad_product * glu * up_passes;
  const at::Tensor grad_weight = (grad_out * product).sum(1);

  // Everything is computed before anything is written: outputs may be inputs.
  every_other(grad_gate_up_RJ, 0).copy_(grad_gate);
  every_other(grad_gate_up_RJ, 1).copy_(grad_up);
  activation_RI.copy_(product * weight_R.unsqueeze(1));
  grad_weight_R.copy_(grad_weight);
}

}  // namespace conclave::reference
