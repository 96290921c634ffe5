#include "kernels/cached_attention.h"

#include "kernel_test.h"

namespace conclave {
namespace {

struct Case {
  std::vector<int64_t> lengths, queries;  // of each sequence
  AttentionShape shape;                   // heads, dims, window, scale
};

const std::vector<Case>& cases() {
  static const std::vector<Case> values = {
      {{}, {}, {1, 0, 2, 1, 8}},
      {{1}, {1}, {1, 0, 1, 1, 8}},
      {{9}, {0}, {1, 0, 2, 1, 8}},
      {{5, 1, 40}, {5, 1, 1}, {1, 0, 4, 2, 16}},
      {{33, 700}, {33, 1}, {1, 0, 6, 1, 40}},
      {{300}, {300}, {1, 0, 8, 8, 64}},
      {{1100, 600}, {1, 130}, {1, 0, 4, 2, 16}},
      {{17, 5, 30}, {17, 1, 2}, {1, 0, 4, 2, 16, 5}},
      {{1300, 90}, {1, 90}, {1, 0, 2, 1, 16, 520}},
      {{12, 3}, {1, 3}, {1, 0, 4, 2, 6, 4, {}, 10}},
      // As latent attention has it: many heads, one key, values within the keys.
      {{70, 600}, {70, 1}, {1, 0, 40, 1, 24, {}, 0.3, 16}},
  };
  return values;
}

struct Inputs {
  explicit Inputs(const Case& c, at::ScalarType dtype) : shape(c.shape) {
    for (size_t i = 0; i < c.lengths.size(); ++i) {
      const int64_t keys = shape.kv_heads * shape.head_dim, values = shape.kv_heads * shape.value_dim();
      const bool overlap = shape.kv_heads == 1 && values < keys;
      const at::Tensor rows = random_tensor({c.lengths[i], overlap ? keys : keys + values}, dtype);
      sequences.push_back({rows.narrow(1, 0, keys), rows.narrow(1, overlap ? 0 : keys, values), c.queries[i]});
      shape.sequence += c.queries[i];
    }
    // Rows lie further apart than they are long.
    query = random_tensor({shape.sequence, shape.heads * shape.head_dim + 3}, dtype)
                .narrow(1, 0, shape.heads * shape.head_dim);
  }
  AttentionShape shape;
  std::vector<CachedKeys> sequences;
  at::Tensor query;
};

struct Results {
  at::Tensor out, logsumexp;
};

template <class Compute>
Results run(const Inputs& in, const Compute& compute) {
  const at::ScalarType dtype = in.query.scalar_type();
  Results r{garbage({in.shape.sequence, in.shape.out_columns()}, dtype),
            garbage({1, in.shape.heads, in.shape.sequence}, dtype == at::kDouble ? at::kDouble : at::kFloat)};
  compute(r.out, r.logsumexp, in.query, in.sequences, in.shape);
  return r;
}

// Query by query and head by head, in double.
Results textbook(const Inputs& in) {
  const AttentionShape& s = in.shape;
  Results r{at::empty({s.sequence, s.out_columns()}, at::kDouble), at::empty({1, s.heads, s.sequence}, at::kDouble)};
  const double scale = s.scale.value_or(1 / std::sqrt(static_cast<double>(s.head_dim)));
  int64_t row = 0;
  for (const CachedKeys& sequence : in.sequences) {
    for (int64_t q = 0; q < sequence.queries; ++q, ++row) {
      const int64_t end = sequence.length() - sequence.queries + q + 1;
      const int64_t begin = s.window ? std::max<int64_t>(0, end - *s.window) : 0;
      for (int64_t head = 0; head < s.heads; ++head) {
        const int64_t of = head / (s.heads / s.kv_heads);
        const auto part = [&](const at::Tensor& rows, int64_t dim) {
          return rows.narrow(0, begin, end - begin).narrow(1, of * dim, dim).to(at::kDouble);
        };
        const at::Tensor query = in.query[row].narrow(0, head * s.head_dim, s.head_dim).to(at::kDouble);
        const at::Tensor scores = at::mv(part(sequence.key_SM, s.head_dim), query) * scale;
        const at::Tensor probability = at::softmax(scores, 0);
        r.out[row]
            .narrow(0, head * s.value_dim(), s.value_dim())
            .copy_(at::mv(part(sequence.value_SM, s.value_dim()).t(), probability));
        r.logsumexp[0][head][row] = at::logsumexp(scores, {0});
      }
    }
  }
  return r;
}

// Oracle: the textbook's form, above. Tolerance: sums in double.
TEST(CachedAttentionReference, equals_textbook) {
  for (const Case& c : cases()) {
    const Inputs in(c, at::kDouble);
    if (in.shape.sequence > 150) continue;  // query by query it takes long
    const Results actual = run(in, reference::cached_attention), expected = textbook(in);
    expect_close("out", actual.out, expected.out, {1e-12, 1e-13});
    expect_close("logsumexp", actual.logsumexp, expected.logsumexp, {1e-12, 1e-13});
  }
}

class CachedAttention : public SimdTest {};

// Oracle: the reference in double on the same inputs. Tolerances as attention's own (attention_test.cpp).
TEST_P(CachedAttention, equals_reference) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const Case& c : cases()) {
      Inputs in(c, dtype);
      const Results actual = run(in, cached_attention);
      if (in.shape.sequence == 0) continue;
      in.query = in.query.to(at::kDouble);
      for (CachedKeys& sequence : in.sequences)
        sequence = {sequence.key_SM.to(at::kDouble), sequence.value_SM.to(at::kDouble), sequence.queries};
      const Results expected = run(in, reference::cached_attention);
      const bool fp32 = dtype == at::kFloat;
      const double scale = expected.out.abs().max().item<double>();
      expect_close("out", actual.out, expected.out, {0, (fp32 ? 60 * eps_fp32 : 4 * rounding(dtype)) * scale});
      expect_close("logsumexp", actual.logsumexp, expected.logsumexp, {0, fp32 ? 60 * eps_fp32 : 1.0 / (1 << 13)});
    }
  }
}

TEST_P(CachedAttention, does_not_depend_on_threads) {
  const Inputs in({{1100, 40, 600}, {1, 40, 130}, {1, 0, 8, 2, 16}}, at::kFloat);
  expect_same_for_any_threads([&] {
    const Results r = run(in, cached_attention);
    return std::vector<at::Tensor>{r.out, r.logsumexp};
  });
}

CONCLAVE_SIMD_TESTS(CachedAttention);

}  // namespace
}  // namespace conclave
