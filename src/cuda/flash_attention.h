// Attention on CUDA: FlashAttention as ATen has it, where it takes the shape (base/cuda_rules.h), else the reference.
// Arguments as in kernels/attention.h, already checked.
#pragma once

#include "kernels/attention.h"

namespace conclave::cuda {

void attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                       const AttentionShape& shape);

// The same bits every time.
void attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape);

}  // namespace conclave::cuda
