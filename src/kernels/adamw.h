// AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019) on flat fp32 shards, in one pass over
// memory.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/adamw_step.h"

namespace conclave {

// All 1-D fp32 of one length:
//   g = grad * grad_scale; p *= 1 - lr * weight_decay; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
//   p -= lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)   (torch.optim.AdamW's order of operations)
void adamw_step(at::Tensor parameter, at::Tensor exp_avg, at::Tensor exp_avg_sq, const at::Tensor& grad,
                const AdamwStep& step);

// Sum of squares of a 1-D fp32 tensor, in double, in a fixed order of fixed blocks. Not finite if any element is not.
double sum_of_squares(const at::Tensor& x);

// The same as one double where x is, so that nobody has to wait for it.
at::Tensor sum_of_squares_tensor(const at::Tensor& x);

namespace reference {
void adamw_step(at::Tensor parameter, at::Tensor exp_avg, at::Tensor exp_avg_sq, const at::Tensor& grad,
                const AdamwStep& step);
double sum_of_squares(const at::Tensor& x);
}  // namespace reference

}  // namespace conclave
