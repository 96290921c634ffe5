// The experts with products in fp8 (precision.experts: fp8): what moe/experts.h computes, with the operands of every
// product quantized (kernels/fp8_quantize.h). Rows and activations are e4m3, their gradients e5m2, weights e4m3:
//
//   y      [R,N] = x W^T       x in blocks along M, W in squares
//   grad_x [R,M] = grad_y W    grad_y in blocks along N, W transposed, in the same squares
//   grad_W [N,M] = grad_y^T x  both in blocks along the rows
//
// Everything between products is in bf16 as without fp8, weight gradients are fp32. Quantized copies live no longer
// than their chunk; a weight's are made for the expert's first chunk.
#pragma once

#include "moe/experts.h"

namespace conclave {

ExpertOutput fp8_experts_forward(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert,
                                 const ExpertWeights& weights, PreActivation pre_activation);

ExpertRows fp8_experts_backward(const at::Tensor& grad_RH, ExpertRows rows, at::Tensor gate_up_RJ,
                                const std::vector<int64_t>& rows_per_expert, const ExpertWeights& weights,
                                ExpertGradients& gradients);

}  // namespace conclave
