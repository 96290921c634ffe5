#include "kernels/cached_attention.h"

#include <ATen/ATen.h>

#include <limits>

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {

namespace {

void check_sequences(const char* op, const at::Tensor& query_TM, std::span<const CachedKeys> sequences,
                     const AttentionShape& shape) {
  int64_t rows = 0;
  for (const CachedKeys& sequence : sequences) {
    rows += sequence.queries;
    const int64_t length = sequence.length();
    check_invariant(sequence.queries >= 0 && sequence.queries <= length, "{}: {} queries of {} tokens", op,
                    sequence.queries, length);
    check_rows(op, "key", sequence.key_SM, length, shape.kv_heads * shape.head_dim, query_TM.scalar_type());
    check_rows(op, "value", sequence.value_SM, length, shape.kv_heads * shape.value_dim(), query_TM.scalar_type());
  }
  check_invariant(rows == query_TM.size(0), "{}: {} queries in {} rows", op, rows, query_TM.size(0));
}

}  // namespace

void cached_attention(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& query_TM,
                      std::span<const CachedKeys> sequences, const AttentionShape& shape) {
  const KernelScope timed(Phase::attention);
  constexpr auto op = "cached_attention";
  check_invariant(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 && shape.window.value_or(1) > 0,
                  "{}: {} heads, {} key/value heads, window {}", op, shape.heads, shape.kv_heads,
                  shape.window.value_or(0));
  check_rows(op, "query", query_TM, shape.sequence, shape.heads * shape.head_dim);
  const at::ScalarType dtype = query_TM.scalar_type();
  check_tensor(op, "out", out_TN, {shape.sequence, shape.out_columns()}, dtype);
  check_tensor(op, "logsumexp", logsumexp_BNS, {1, shape.heads, shape.sequence}, wide_dtype(dtype));
  check_sequences(op, query_TM, sequences, shape);
  kernels_of(query_TM).cached_attention(out_TN, logsumexp_BNS, query_TM, sequences, shape);
}

// Sequence by sequence, with all scores of it at once.
void reference::cached_attention(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& query_TM,
                                 std::span<const CachedKeys> sequences, const AttentionShape& shape) {
  const at::ScalarType wide = wide_dtype(query_TM.scalar_type());
  const auto heads_of = [&](const at::Tensor& rows, int64_t dim) {  // [kv_heads, heads of each, rows, dim]
    return rows.to(wide).reshape({rows.size(0), shape.kv_heads, -1, dim}).permute({1, 2, 0, 3});
  };
  int64_t row = 0;
  for (const CachedKeys& sequence : sequences) {
    const int64_t queries = sequence.queries, length = sequence.length();
    if (queries == 0) continue;
    const at::Tensor query = heads_of(query_TM.narrow(0, row, queries), shape.head_dim);
    const at::Tensor key = heads_of(sequence.key_SM, shape.head_dim);
    const auto integers = query_TM.options().dtype(at::kLong);
    const at::Tensor distance = (at::arange(queries, integers) + (length - queries)).unsqueeze(1) -
                                at::arange(length, integers).unsqueeze(0);  // query - key
    const at::Tensor hidden = at::logical_or(distance.lt(0), distance.ge(shape.window.value_or(length)));
    const at::Tensor scores = (at::matmul(query, key.transpose(-2, -1)) * shape.score_scale())
                                  .masked_fill(hidden, -std::numeric_limits<double>::infinity());
    const at::Tensor logsumexp = at::logsumexp(scores, {-1}, /*keepdim=*/true);
    const at::Tensor out = at::matmul(at::exp(scores - logsumexp), heads_of(sequence.value_SM, shape.value_dim()));
    out_TN.narrow(0, row, queries).copy_(out.permute({2, 0, 1, 3}).reshape({queries, -1}));
    logsumexp_BNS[0].narrow(1, row, queries).copy_(logsumexp.reshape({shape.heads, queries}));
    row += queries;
  }
}

}  // namespace conclave
