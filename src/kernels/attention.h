// Causal grouped-query attention over packed projections, without a materialized S x S matrix and without repeated
// key/value heads where a flash kernel exists (CPU; CUDA in bf16).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace conclave {

struct AttentionShape {
  int64_t batch = 0;
  int64_t sequence = 0;
  int64_t heads = 0;  // query heads; query head h reads key/value head h / (heads / kv_heads)
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  std::optional<int64_t> window;  // keys a query sees, itself included; none: all up to itself
};

// out [T, heads * D] from qkv [T, (heads + 2 kv_heads) * D] (query, key, value heads side by side; T = batch *
// sequence; rotated already), scale D^-0.5. logsumexp [batch, heads, sequence] fp32 is kept for backward.
void attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                       const AttentionShape& shape);

// grad_qkv [T, (heads + 2 kv_heads) * D] = gradient with respect to qkv (overwritten).
void attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape);

namespace reference {
void attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                       const AttentionShape& shape);
void attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape);
}  // namespace reference

}  // namespace conclave
