// Products with the two matrices of an adapter (LoRA; Hu et al., arXiv 2106.09685): what they add to those with a
// matrix W [N,M] is scale * (x A^T) B^T, with A [P,M] and B [N,P] of few columns P. Their product B A is never made.
#pragma once

#include <ATen/core/Tensor.h>

#include "base/gradient.h"

namespace conclave {

struct LowRank {
  at::Tensor a_PM;
  at::Tensor b_NP;
  double scale = 1;
};

// y [R,N] += scale * (x [R,M] A^T) B^T.
void low_rank_forward_add(const at::Tensor& y_RN, const at::Tensor& x_RM, const LowRank& matrices);

// The gradient of x A^T, [R,P]: what the two others begin with.
at::Tensor low_rank_backward_inner(const at::Tensor& grad_y_RN, const LowRank& matrices);
// The gradients of A and B, if they are wanted.
void low_rank_backward_weights(const Gradient& grad_a, const Gradient& grad_b, const at::Tensor& grad_y_RN,
                               const at::Tensor& grad_inner_RP, const at::Tensor& x_RM, const LowRank& matrices);
// grad_x [R,M] += grad_inner A.
void low_rank_backward_input_add(const at::Tensor& grad_x_RM, const at::Tensor& grad_inner_RP, const LowRank& matrices);

}  // namespace conclave
