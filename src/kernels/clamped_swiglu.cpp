#include "kernels/clamped_swiglu.h"

#include "base/step_clock.h"
#include "kernels/check_gated.h"
#include "kernels/kernels.h"

namespace conclave {

void clamped_swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                            const ClampedSwiglu& shape) {
  const KernelScope timed(Phase::kernels);
  check_gated_forward("clamped_swiglu_forward", out_RI, gate_up_RJ, weight_R);
  kernels_of(gate_up_RJ).clamped_swiglu_forward(out_RI, gate_up_RJ, weight_R, shape);
}

void clamped_swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                             const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                             const ClampedSwiglu& shape) {
  const KernelScope timed(Phase::kernels);
  check_gated_backward("clamped_swiglu_backward", grad_gate_up_RJ, activation_RI, grad_weight_R, grad_out_RI,
                       gate_up_RJ, weight_R);
  kernels_of(gate_up_RJ)
      .clamped_swiglu_backward(grad_gate_up_RJ, activation_RI, grad_weight_R, grad_out_RI, gate_up_RJ, weight_R, shape);
}

}  // namespace conclave
