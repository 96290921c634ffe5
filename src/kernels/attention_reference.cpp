#include <ATen/ATen.h>

#include <limits>

#include "kernels/attention.h"
#include "kernels/check.h"

namespace conclave::reference {

namespace {

// `heads` heads of `dim` columns from column `first` of the packed rows as [B, kv_heads, heads / kv_heads, S, dim]:
// query heads of one key/value head side by side, so that keys and values broadcast over dim 2.
at::Tensor heads_of(const at::Tensor& packed_TM, const AttentionShape& shape, int64_t first, int64_t heads,
                    int64_t dim) {
  return packed_TM.narrow(1, first, heads * dim)
      .view({shape.batch, shape.sequence, shape.kv_heads, heads / shape.kv_heads, dim})
      .permute({0, 2, 3, 1, 4});
}

at::Tensor out_heads_of(const at::Tensor& out_TN, const AttentionShape& shape) {
  return heads_of(out_TN, shape, 0, shape.heads, shape.value_dim());
}

struct PackedHeads {
  at::Tensor query, key, value;
};

PackedHeads split(const at::Tensor& packed_TM, const AttentionShape& shape) {
  const int64_t queries = shape.heads * shape.head_dim, keys = shape.kv_heads * shape.head_dim;
  return {heads_of(packed_TM, shape, 0, shape.heads, shape.head_dim),
          heads_of(packed_TM, shape, queries, shape.kv_heads, shape.head_dim),
          heads_of(packed_TM, shape, queries + keys, shape.kv_heads, shape.value_dim())};
}

// Whether query i and key j are of two documents, [B, 1, 1, S, S].
at::Tensor of_two_documents(const AttentionShape& shape) {
  const at::Tensor position = shape.documents->position_T;
  const at::Tensor begin =
      (at::arange(position.numel(), position.options()) - position).view({shape.batch, 1, 1, shape.sequence});
  return begin.unsqueeze(4).ne(begin.unsqueeze(3));
}

// query key^T * scale, -infinity where query i must not see key j: j > i, or j <= i - window, or in another document.
at::Tensor masked_scores(const PackedHeads& heads, at::ScalarType wide, const AttentionShape& shape) {
  const at::Tensor scores =
      at::matmul(heads.query.to(wide), heads.key.to(wide).transpose(-2, -1)) * shape.score_scale();
  const at::Tensor position = at::arange(shape.sequence, heads.query.options().dtype(at::kLong));
  const at::Tensor distance = position.unsqueeze(1) - position.unsqueeze(0);  // query - key
  const int64_t window = shape.window.value_or(shape.sequence);
  at::Tensor hidden = at::logical_or(distance.lt(0), distance.ge(window));
  if (shape.documents != nullptr) hidden = at::logical_or(hidden, of_two_documents(shape));
  return scores.masked_fill(hidden, -std::numeric_limits<double>::infinity());
}

}  // namespace

void attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                       const AttentionShape& shape) {
  const at::ScalarType wide = wide_dtype(qkv_TM.scalar_type());
  const PackedHeads heads = split(qkv_TM, shape);
  const at::Tensor scores = masked_scores(heads, wide, shape);
  const at::Tensor logsumexp = at::logsumexp(scores, {-1}, /*keepdim=*/true);
  const at::Tensor probability = at::exp(scores - logsumexp);
  out_heads_of(out_TN, shape).copy_(at::matmul(probability, heads.value.to(wide)));
  logsumexp_BNS.copy_(logsumexp.reshape(logsumexp_BNS.sizes()));
}

// Softmax's gradient, with delta = rowsum(grad_out * out) = rowsum(P * dP), also where a sink has a part of P (Dao et
// al., "FlashAttention", 2022, appendix B.2): dV = P^T dO, dP = dO V^T, dS = P * (dP - delta), dQ = scale dS K, dK =
// scale dS^T Q; a key head sums over the query heads that read it.
void attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape) {
  const at::ScalarType wide = wide_dtype(qkv_TM.scalar_type());
  const PackedHeads heads = split(qkv_TM, shape);
  const at::Tensor scores = masked_scores(heads, wide, shape);
  const at::Tensor logsumexp =
      logsumexp_BNS.view({shape.batch, shape.kv_heads, shape.heads / shape.kv_heads, shape.sequence, 1});
  const at::Tensor probability = at::exp(scores - logsumexp);
  const at::Tensor grad_out = out_heads_of(grad_out_TN, shape).to(wide);
  const at::Tensor out = out_heads_of(out_TN, shape).to(wide);

  const at::Tensor delta = (grad_out * out).sum(-1, /*keepdim=*/true);
  const at::Tensor grad_probability = at::matmul(grad_out, heads.value.to(wide).transpose(-2, -1));
  const at::Tensor grad_scores = probability * (grad_probability - delta) * shape.score_scale();
  const PackedHeads grads = split(grad_qkv_TM, shape);
  grads.query.copy_(at::matmul(grad_scores, heads.key.to(wide)));
  grads.key.copy_(at::matmul(grad_scores.transpose(-2, -1), heads.query.to(wide)).sum(2, /*keepdim=*/true));
  grads.value.copy_(at::matmul(probability.transpose(-2, -1), grad_out).sum(2, /*keepdim=*/true));
}

}  // namespace conclave::reference
