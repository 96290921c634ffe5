// Attention on paper: what it costs, and the temporaries of the kernel that a device has for it, which are its own or a
// library's and so can only be declared. Beside it the kernels of its sinks and of latent keys and values.
#pragma once

#include "kernels/cached_attention.h"
#include "kernels/latent_heads.h"

namespace conclave::paper {

void attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                       const AttentionShape& shape);
void attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape);

void cached_attention(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& query_TM,
                      std::span<const CachedKeys> sequences, const AttentionShape& shape);

void sink_forward_(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& sink_N);
void sink_backward(at::Tensor grad_sink_N, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                   const at::Tensor& logsumexp_BNS, const at::Tensor& sink_N);
void expand_latent(at::Tensor qkv_TM, const at::Tensor& kv_TX, const at::Tensor& rotary_TR, const LatentHeads& heads);
void collect_latent(at::Tensor grad_kv_TX, at::Tensor grad_rotary_TR, const at::Tensor& grad_qkv_TM,
                    const LatentHeads& heads);

}  // namespace conclave::paper
