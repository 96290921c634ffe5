// Attention of the newest tokens of sequences whose keys and values are kept from token to token: what generation
// computes. There is no backward pass. Each sequence has a memory of its own, so sequences of any lengths go together,
// one with all tokens of its prompt beside another with one more token.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>

#include "kernels/attention.h"

namespace conclave {

struct CachedKeys {
  at::Tensor key_SM;    // [length, kv_heads * D]; rows any distance apart
  at::Tensor value_SM;  // [length, kv_heads * V], the same; may overlap the keys (latent attention)
  int64_t queries =
      0;  // the sequence's newest tokens: so many consecutive rows of the batch, in the order of sequences

  int64_t length() const { return key_SM.size(0); }
};

// out [T, heads * V] from query [T, heads * D] (rotated already; rows any distance apart; T = the sum of queries). Of
// `shape` batch is 1 and sequence is T. logsumexp [1, heads, T] fp32 is for sink_forward_ (attention_sink.h).
void cached_attention(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& query_TM,
                      std::span<const CachedKeys> sequences, const AttentionShape& shape);

namespace reference {
void cached_attention(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& query_TM,
                      std::span<const CachedKeys> sequences, const AttentionShape& shape);
}  // namespace reference

}  // namespace conclave
