// The fast paths on CUDA that ATen already has; arguments as in the public headers, already checked.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/attention.h"

namespace conclave::cuda {

// Whether attention is FlashAttention's (base/cuda_rules.h).
bool has_flash_attention(const at::Tensor& qkv_TM, const AttentionShape& shape);

void attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                       const AttentionShape& shape);

// The same bits every time.
void attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape);

}  // namespace conclave::cuda
