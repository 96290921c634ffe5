// The experts' products over all experts at once (at::_grouped_mm), for many experts with few rows each: there a loop
// over the experts launches more than it computes. Results and gradients as in moe/experts.h, up to the order of sums.
//
// Temporaries are of all rows, not of a chunk. The gradients of the weights are products of each expert's own.
#pragma once

#include "moe/experts.h"

namespace conclave {

// Where the device groups them, without guests, where the sizes allow it and it pays (groups_products in
// base/cuda_rules.h).
bool takes_grouped_products(const ExpertRows& rows, const ExpertWeights& weights);

ExpertOutput grouped_experts_forward(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert,
                                     const ExpertWeights& weights, PreActivation pre_activation);

ExpertRows grouped_experts_backward(const at::Tensor& grad_RH, ExpertRows rows, at::Tensor gate_up_RJ,
                                    const std::vector<int64_t>& rows_per_expert, const ExpertWeights& weights,
                                    ExpertGradients& gradients);

}  // namespace conclave
