// Attention sinks as gpt-oss has them: each head has one more score, the same for every query, that takes part in the
// softmax and has no value. It is applied to what attention computed without it, and attention_backward then computes
// with what it leaves (AttentionShape::sinks).
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

// logsumexp [B,N,S] fp32 becomes log(exp(logsumexp) + exp(sink)), and the head's part of each row of out [B * S, N * D]
// is multiplied by exp(before - now). sink [N] in out's dtype, fp32 or bf16.
void sink_forward_(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& sink_N);

// grad_sink [N] fp32 += -exp(sink - logsumexp) * (the head's part of out * that of grad_out), summed over rows; out and
// logsumexp as sink_forward_ left them.
void sink_backward(at::Tensor grad_sink_N, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                   const at::Tensor& logsumexp_BNS, const at::Tensor& sink_N);

namespace reference {
void sink_forward_(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& sink_N);
void sink_backward(at::Tensor grad_sink_N, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                   const at::Tensor& logsumexp_BNS, const at::Tensor& sink_N);
}  // namespace reference

}  // namespace conclave
