#include "kernels/low_rank.h"

#include <ATen/ATen.h>

#include "kernels/linear.h"

namespace conclave {
namespace {

// scale * x A^T.
at::Tensor inner(const at::Tensor& x_RM, const LowRank& matrices) {
  at::Tensor inner_RP = at::empty({x_RM.size(0), matrices.a_PM.size(0)}, x_RM.options());
  linear_forward(inner_RP, x_RM, matrices.a_PM);
  return inner_RP.mul_(matrices.scale);
}

}  // namespace

void low_rank_forward_add(const at::Tensor& y_RN, const at::Tensor& x_RM, const LowRank& matrices) {
  linear_forward_add(y_RN, inner(x_RM, matrices), matrices.b_NP);
}

at::Tensor low_rank_backward_inner(const at::Tensor& grad_y_RN, const LowRank& matrices) {
  at::Tensor grad_inner_RP = at::empty({grad_y_RN.size(0), matrices.a_PM.size(0)}, grad_y_RN.options());
  linear_backward_input(grad_inner_RP, grad_y_RN, matrices.b_NP);
  return grad_inner_RP.mul_(matrices.scale);
}

void low_rank_backward_weights(const Gradient& grad_a, const Gradient& grad_b, const at::Tensor& grad_y_RN,
                               const at::Tensor& grad_inner_RP, const at::Tensor& x_RM, const LowRank& matrices) {
  if (grad_b.is_wanted()) linear_backward_weight(grad_b.tensor, grad_y_RN, inner(x_RM, matrices), grad_b.accumulate);
  if (grad_a.is_wanted()) linear_backward_weight(grad_a.tensor, grad_inner_RP, x_RM, grad_a.accumulate);
}

void low_rank_backward_input_add(const at::Tensor& grad_x_RM, const at::Tensor& grad_inner_RP,
                                 const LowRank& matrices) {
  linear_backward_input_add(grad_x_RM, grad_inner_RP, matrices.a_PM);
}

}  // namespace conclave
