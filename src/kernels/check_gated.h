// What the entries of gated activations (swiglu.h, clamped_swiglu.h) check of their tensors.
#pragma once

#include "kernels/check.h"

namespace conclave {

inline void check_gated_forward(const char* op, const at::Tensor& out_RI, const at::Tensor& gate_up_RJ,
                                const at::Tensor& weight_R) {
  check_dims(op, "out", out_RI, 2);
  const int64_t rows = out_RI.size(0), intermediate = out_RI.size(1);
  const at::ScalarType dtype = out_RI.scalar_type();
  check_tensor(op, "gate_up", gate_up_RJ, {rows, 2 * intermediate}, dtype);
  check_tensor(op, "weight", weight_R, {rows}, wide_dtype(dtype));
}

inline void check_gated_backward(const char* op, const at::Tensor& grad_gate_up_RJ, const at::Tensor& activation_RI,
                                 const at::Tensor& grad_weight_R, const at::Tensor& grad_out_RI,
                                 const at::Tensor& gate_up_RJ, const at::Tensor& weight_R) {
  check_dims(op, "grad_out", grad_out_RI, 2);
  const int64_t rows = grad_out_RI.size(0), intermediate = grad_out_RI.size(1);
  const at::ScalarType dtype = grad_out_RI.scalar_type();
  check_tensor(op, "grad_gate_up", grad_gate_up_RJ, {rows, 2 * intermediate}, dtype);
  check_tensor(op, "activation", activation_RI, {rows, intermediate}, dtype);
  check_tensor(op, "grad_weight", grad_weight_R, {rows}, wide_dtype(dtype));
  check_tensor(op, "gate_up", gate_up_RJ, {rows, 2 * intermediate}, dtype);
  check_tensor(op, "weight", weight_R, {rows}, wide_dtype(dtype));
}

}  // namespace conclave
