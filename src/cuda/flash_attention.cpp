#include "cuda/flash_attention.h"

#include <ATen/ATen.h>

#include "base/cuda_rules.h"

namespace conclave {

namespace {

// `heads` heads of `dim` columns from column `first` of the packed rows as [B, S, heads, dim], or of documents as
// [T, heads, dim], without a copy: the layouts of FlashAttention itself.
at::Tensor heads_of(const at::Tensor& packed_TM, const AttentionShape& shape, int64_t first, int64_t heads,
                    int64_t dim) {
  const at::Tensor columns = packed_TM.narrow(1, first, heads * dim);
  if (shape.documents != nullptr) return columns.view({columns.size(0), heads, dim});
  return columns.view({shape.batch, shape.sequence, heads, dim});
}

at::Tensor query_of(const at::Tensor& packed, const AttentionShape& s) {
  return heads_of(packed, s, 0, s.heads, s.head_dim);
}
at::Tensor key_of(const at::Tensor& packed, const AttentionShape& s) {
  return heads_of(packed, s, s.heads * s.head_dim, s.kv_heads, s.head_dim);
}
at::Tensor value_of(const at::Tensor& packed, const AttentionShape& s) {
  return heads_of(packed, s, (s.heads + s.kv_heads) * s.head_dim, s.kv_heads, s.value_dim());
}
at::Tensor out_of(const at::Tensor& out, const AttentionShape& s) {
  return heads_of(out, s, 0, s.heads, s.value_dim());
}

// The kernel takes queries, keys and values of one dim: zeros behind the smaller ones change neither products nor sums.
int64_t dim_of_kernel(const AttentionShape& shape) {
  return std::max(shape.head_dim, shape.value_dim());
}
at::Tensor padded(const at::Tensor& heads, const AttentionShape& shape) {
  const int64_t behind = dim_of_kernel(shape) - heads.size(-1);
  return behind == 0 ? heads : at::constant_pad_nd(heads, {0, behind});
}
// Of what the kernel gave for all its dims.
void copy_dims(const at::Tensor& to, const at::Tensor& from) {
  to.copy_(from.narrow(-1, 0, to.size(-1)));
}

// While it lives, ATen's operators take the forms whose sums have a fixed order, without filling what they leave
// unwritten.
class FixedOrderOfSums {
 public:
  FixedOrderOfSums() {
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  }
  ~FixedOrderOfSums() {
    at::globalContext().setDeterministicAlgorithms(deterministic_, warn_only_);
    at::globalContext().setDeterministicFillUninitializedMemory(fill_);
  }
  FixedOrderOfSums(const FixedOrderOfSums&) = delete;

 private:
  bool deterministic_ = at::globalContext().deterministicAlgorithms();
  bool warn_only_ = at::globalContext().deterministicAlgorithmsWarnOnly();
  bool fill_ = at::globalContext().deterministicFillUninitializedMemory();
};

// Keys to the left of the query that it sees; -1: all.
int64_t keys_to_the_left(const AttentionShape& shape) {
  return shape.window && *shape.window < shape.longest_document() ? *shape.window - 1 : -1;
}

// Where documents begin and end, of which each is a sequence of its own to the kernel; undefined: there are none.
at::Tensor bounds_of(const AttentionShape& shape) {
  return shape.documents != nullptr ? shape.documents->bounds : at::Tensor();
}
std::optional<at::Tensor> given_bounds(const AttentionShape& shape) {
  if (shape.documents == nullptr) return std::nullopt;
  return shape.documents->bounds;
}

// The logsumexp as the kernel has it, [heads, T] of documents, and back.
at::Tensor logsumexp_of_kernel(const at::Tensor& logsumexp_BNS, const AttentionShape& shape) {
  return shape.documents != nullptr ? logsumexp_BNS.transpose(0, 1).reshape({shape.heads, -1}) : logsumexp_BNS;
}
at::Tensor logsumexp_by_sequence(const at::Tensor& of_kernel, const AttentionShape& shape) {
  if (shape.documents == nullptr) return of_kernel;
  return of_kernel.view({shape.heads, shape.batch, shape.sequence}).transpose(0, 1);
}

// Else scores are whole.
bool has_flash_attention(const at::Tensor& qkv_TM, const AttentionShape& shape) {
  return qkv_TM.is_cuda() && qkv_TM.scalar_type() == at::kBFloat16 &&
         has_flash_kernel(dim_of_kernel(shape), static_cast<int64_t>(qkv_TM.element_size()));
}

}  // namespace

void cuda::attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                             const AttentionShape& shape) {
  if (!has_flash_attention(qkv_TM, shape)) return reference::attention_forward(out_TN, logsumexp_BNS, qkv_TM, shape);
  if (shape.batch == 0) return;
  const auto result = at::_flash_attention_forward(
      padded(query_of(qkv_TM, shape), shape), padded(key_of(qkv_TM, shape), shape),
      padded(value_of(qkv_TM, shape), shape), /*cum_seq_q=*/given_bounds(shape), /*cum_seq_k=*/given_bounds(shape),
      shape.longest_document(), shape.longest_document(), /*dropout_p=*/0, /*is_causal=*/true,
      /*return_debug_mask=*/false, shape.score_scale(), keys_to_the_left(shape), /*window_size_right=*/0);
  copy_dims(out_of(out_TN, shape), std::get<0>(result));
  logsumexp_BNS.copy_(logsumexp_by_sequence(std::get<1>(result), shape));
}

void cuda::attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                              const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape) {
  if (!has_flash_attention(qkv_TM, shape))
    return reference::attention_backward(grad_qkv_TM, grad_out_TN, out_TN, logsumexp_BNS, qkv_TM, shape);
  if (shape.batch == 0) return;
  const FixedOrderOfSums fixed_order;  // else the kernel adds up the queries' gradient by atomics
  const at::Tensor no_dropout_state = at::empty({2}, qkv_TM.options().dtype(at::kUInt64));
  const auto [grad_query, grad_key, grad_value] = at::_flash_attention_backward(
      padded(out_of(grad_out_TN, shape), shape), padded(query_of(qkv_TM, shape), shape),
      padded(key_of(qkv_TM, shape), shape), padded(value_of(qkv_TM, shape), shape),
      padded(out_of(out_TN, shape), shape), logsumexp_of_kernel(logsumexp_BNS, shape), /*cum_seq_q=*/bounds_of(shape),
      /*cum_seq_k=*/bounds_of(shape), shape.longest_document(), shape.longest_document(), /*dropout_p=*/0,
      /*is_causal=*/true, no_dropout_state,
      /*unused=*/at::empty({}, no_dropout_state.options()), shape.score_scale(), keys_to_the_left(shape),
      /*window_size_right=*/0);
  copy_dims(query_of(grad_qkv_TM, shape), grad_query);
  copy_dims(key_of(grad_qkv_TM, shape), grad_key);
  copy_dims(value_of(grad_qkv_TM, shape), grad_value);
}

}  // namespace conclave
