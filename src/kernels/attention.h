// Causal grouped-query attention over packed projections, without a materialized S x S matrix and without repeated
// key/value heads where a flash kernel exists (CPU; CUDA in bf16). What one document has to do with another one is not
// computed there.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <optional>

#include "kernels/documents.h"

namespace conclave {

struct AttentionShape {
  int64_t batch = 0;
  int64_t sequence = 0;
  int64_t heads = 0;  // query heads; query head h reads key/value head h / (heads / kv_heads)
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  std::optional<int64_t> window = {};          // keys a query sees, itself included; none: all up to itself
  std::optional<double> scale = {};            // of scores; none: head_dim^-0.5
  std::optional<int64_t> value_head_dim = {};  // none: as queries and keys have
  bool sinks = false;  // backward is given what sink_forward_ left (attention_sink.h): probabilities do not sum to one
  // Of batch * sequence rows, which do not see each other; outlives the call. Null: each sequence is one document.
  const Documents* documents = nullptr;

  double score_scale() const { return scale.value_or(1 / std::sqrt(static_cast<double>(head_dim))); }
  int64_t value_dim() const { return value_head_dim.value_or(head_dim); }
  int64_t longest_document() const { return documents != nullptr ? documents->longest : sequence; }
  int64_t out_columns() const { return heads * value_dim(); }
  int64_t packed_columns() const { return (heads + kv_heads) * head_dim + kv_heads * value_dim(); }
};

// out [T, heads * V] from qkv [T, (heads + kv_heads) * D + kv_heads * V] (query, key, value heads side by side; T =
// batch * sequence; rotated already; V = D but for latent attention). logsumexp [batch, heads, sequence] fp32 is kept
// for backward.
void attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                       const AttentionShape& shape);

// grad_qkv = gradient with respect to qkv (overwritten).
void attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape);

namespace reference {
void attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                       const AttentionShape& shape);
void attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape);
}  // namespace reference

}  // namespace conclave
