#include "kernels/swiglu.h"

#include "base/step_clock.h"
#include "kernels/check_gated.h"
#include "kernels/kernels.h"

namespace conclave {

void swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R) {
  const KernelScope timed(Phase::kernels);
  check_gated_forward("swiglu_forward", out_RI, gate_up_RJ, weight_R);
  kernels_of(gate_up_RJ).swiglu_forward(out_RI, gate_up_RJ, weight_R);
}

void swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                     const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R) {
  const KernelScope timed(Phase::kernels);
  check_gated_backward("swiglu_backward", grad_gate_up_RJ, activation_RI, grad_weight_R, grad_out_RI, gate_up_RJ,
                       weight_R);
  kernels_of(gate_up_RJ)
      .swiglu_backward(grad_gate_up_RJ, activation_RI, grad_weight_R, grad_out_RI, gate_up_RJ, weight_R);
}

}  // namespace conclave
