#include "kernels/clamped_swiglu.h"

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {

void clamped_swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                            const ClampedSwiglu& shape) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "clamped_swiglu_forward";
  check_dims(op, "out", out_RI, 2);
  const int64_t rows = out_RI.size(0), intermediate = out_RI.size(1);
  const at::ScalarType dtype = out_RI.scalar_type();
  check_tensor(op, "gate_up", gate_up_RJ, {rows, 2 * intermediate}, dtype);
  check_tensor(op, "weight", weight_R, {rows}, wide_dtype(dtype));
  kernels_of(gate_up_RJ).clamped_swiglu_forward(out_RI, gate_up_RJ, weight_R, shape);
}

void clamped_swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                             const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                             const ClampedSwiglu& shape) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "clamped_swiglu_backward";
  check_dims(op, "grad_out", grad_out_RI, 2);
  const int64_t rows = grad_out_RI.size(0), intermediate = grad_out_RI.size(1);
  const at::ScalarType dtype = grad_out_RI.scalar_type();
  check_tensor(op, "grad_gate_up", grad_gate_up_RJ, {rows, 2 * intermediate}, dtype);
  check_tensor(op, "activation", activation_RI, {rows, intermediate}, dtype);
  check_tensor(op, "grad_weight", grad_weight_R, {rows}, wide_dtype(dtype));
  check_tensor(op, "gate_up", gate_up_RJ, {rows, 2 * intermediate}, dtype);
  check_tensor(op, "weight", weight_R, {rows}, wide_dtype(dtype));
  kernels_of(gate_up_RJ)
      .clamped_swiglu_backward(grad_gate_up_RJ, activation_RI, grad_weight_R, grad_out_RI, gate_up_RJ, weight_R, shape);
}

}  // namespace conclave
