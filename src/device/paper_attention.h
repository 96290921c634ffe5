// Attention on paper: what it costs, and the temporaries of the kernel that a device has for it, which are its own or a
// library's and so can only be declared.
#pragma once

#include "kernels/attention.h"

namespace conclave::paper {

void attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                       const AttentionShape& shape);
void attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape);

}  // namespace conclave::paper
