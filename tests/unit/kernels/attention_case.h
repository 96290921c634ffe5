// Attention as a textbook has it, and runs of the kernels on garbage.
#pragma once

#include <cmath>
#include <string>

#include "kernel_test.h"
#include "kernels/attention.h"

namespace conclave {

struct Results {
  at::Tensor out, logsumexp, grad_qkv, grad_sink;
};

inline int64_t tokens(const AttentionShape& s) {
  return s.batch * s.sequence;
}
inline std::string describe(const AttentionShape& s) {
  return "batch " + std::to_string(s.batch) + ", sequence " + std::to_string(s.sequence) + ", heads " +
         std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " of " + std::to_string(s.head_dim) + " and " +
         std::to_string(s.value_dim()) + ", window " + std::to_string(s.window.value_or(0)) + ", scale " +
         std::to_string(s.score_scale());
}

// Attention head by head with repeated key/value heads and an explicit mask, as in a textbook; differentiable. A sink
// is one more column of scores without a value, as in Transformers' GptOssAttention. Returns out [T, N] and logsumexp.
inline std::pair<at::Tensor, at::Tensor> textbook(const at::Tensor& qkv, const AttentionShape& s,
                                                  const at::Tensor& sink) {
  const auto heads = [&](int64_t first, int64_t count, int64_t dim) {
    return qkv.narrow(1, first, count * dim).reshape({s.batch, s.sequence, count, dim}).transpose(1, 2);
  };
  const int64_t group = s.heads / s.kv_heads, queries = s.heads * s.head_dim, keys = s.kv_heads * s.head_dim;
  const at::Tensor query = heads(0, s.heads, s.head_dim);
  const at::Tensor key = heads(queries, s.kv_heads, s.head_dim).repeat_interleave(group, 1);
  const at::Tensor value = heads(queries + keys, s.kv_heads, s.value_dim()).repeat_interleave(group, 1);
  at::Tensor visible = at::ones({s.sequence, s.sequence}, at::kBool).tril();
  if (s.window) visible = at::logical_and(visible, at::ones_like(visible).triu(1 - *s.window));
  const double scale = s.scale.value_or(1 / std::sqrt(static_cast<double>(s.head_dim)));
  at::Tensor scores = (at::matmul(query, key.transpose(-2, -1)) * scale).masked_fill(at::logical_not(visible), -1e300);
  if (sink.defined()) scores = at::cat({scores, sink.view({1, -1, 1, 1}).expand({s.batch, -1, s.sequence, 1})}, -1);
  const at::Tensor probability = at::softmax(scores, -1).narrow(-1, 0, s.sequence);
  const at::Tensor out = at::matmul(probability, value).transpose(1, 2).reshape({tokens(s), -1});
  return {out, at::logsumexp(scores, {-1})};
}

template <class Forward, class Backward>
Results run(const at::Tensor& qkv, const at::Tensor& grad_out, const AttentionShape& shape, const Forward& forward,
            const Backward& backward) {
  const at::ScalarType dtype = qkv.scalar_type(), wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  Results r{garbage(grad_out.sizes(), dtype),
            garbage({shape.batch, shape.heads, shape.sequence}, wide),
            garbage(qkv.sizes(), dtype),
            {}};
  forward(r.out, r.logsumexp, qkv, shape);
  backward(r.grad_qkv, grad_out, r.out, r.logsumexp, qkv, shape);
  return r;
}

inline Results compute(const at::Tensor& qkv, const at::Tensor& grad_out, const AttentionShape& shape) {
  return run(qkv, grad_out, shape, attention_forward, attention_backward);
}

}  // namespace conclave
