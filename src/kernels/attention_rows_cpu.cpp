#include "kernels/attention_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention_rows_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

using cpu::ScoreBlock;

// The keys of a block that a row's query sees.
struct Visible {
  Visible(const ScoreBlock& block, int64_t row) {
    const int64_t query = block.first_query + row % block.queries - block.first_key;
    begin = std::clamp<int64_t>(query - block.window + 1, 0, block.keys);
    end = std::clamp<int64_t>(query + 1, begin, block.keys);
  }
  int64_t begin, end;
};

HWY_INLINE float largest(const float* x, size_t n) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  auto m0 = hn::Set(d, lowest), m1 = m0;
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    m0 = hn::Max(m0, hn::LoadU(d, x + i));
    m1 = hn::Max(m1, hn::LoadU(d, x + i + lanes));
  }
  float most = hn::GetLane(hn::MaxOfLanes(d, hn::Max(m0, m1)));
  for (; i < n; ++i) most = std::max(most, x[i]);
  return most;
}

void exponentials(float* scores, const ScoreBlock& block, float* most, float* sum, float* out, int64_t head_dim) {
  for (int64_t row = 0; row < block.rows; ++row) {
    float* score = scores + row * block.keys;
    const Visible visible(block, row);
    std::fill(score, score + visible.begin, 0.0F);
    std::fill(score + visible.end, score + block.keys, 0.0F);
    if (visible.begin == visible.end) continue;
    float* seen = score + visible.begin;
    const auto count = static_cast<size_t>(visible.end - visible.begin);
    const float before = most[row], now = std::max(before, largest(seen, count));
    const float scale = std::exp(before - now);  // 0 in the first block
    if (scale != 1.0F) {
      float* out_row = out + row * head_dim;
      for_lanes(static_cast<size_t>(head_dim), [=](auto d, size_t i) HWY_ATTR {
        store(hn::Mul(load(d, out_row + i), hn::Set(d, scale)), d, out_row + i);
      });
    }
    most[row] = now;
    sum[row] = sum[row] * scale + sum_lanes(count, [=](auto d, size_t i) HWY_ATTR {
                 const auto e = hn::Exp(d, hn::Sub(load(d, seen + i), hn::Set(d, now)));
                 store(e, d, seen + i);
                 return e;
               });
  }
}

void divide(float* outs, const float* sum, const float* most, float* logsumexp, int64_t rows, int64_t head_dim) {
  for (int64_t row = 0; row < rows; ++row) {
    float* out = outs + row * head_dim;
    const float scale = 1.0F / sum[row];
    for_lanes(static_cast<size_t>(head_dim),
              [=](auto d, size_t i) HWY_ATTR { store(hn::Mul(load(d, out + i), hn::Set(d, scale)), d, out + i); });
    logsumexp[row] = most[row] + std::log(sum[row]);
  }
}

void dot(float* product, const float* as, const float* bs, int64_t rows, int64_t head_dim) {
  for (int64_t row = 0; row < rows; ++row) {
    const float *a = as + row * head_dim, *b = bs + row * head_dim;
    product[row] = sum_lanes(static_cast<size_t>(head_dim),
                             [=](auto d, size_t i) HWY_ATTR { return hn::Mul(load(d, a + i), load(d, b + i)); });
  }
}

void probabilities_and_gradients(float* scores, float* grads, const ScoreBlock& block, const float* logsumexps,
                                 const float* deltas) {
  for (int64_t row = 0; row < block.rows; ++row) {
    float *score = scores + row * block.keys, *grad = grads + row * block.keys;
    const Visible visible(block, row);
    for (float* hidden : {score, grad}) {
      std::fill(hidden, hidden + visible.begin, 0.0F);
      std::fill(hidden + visible.end, hidden + block.keys, 0.0F);
    }
    const float logsumexp = logsumexps[row], delta = deltas[row];
    float *score_seen = score + visible.begin, *grad_seen = grad + visible.begin;
    for_lanes(static_cast<size_t>(visible.end - visible.begin), [=](auto d, size_t i) HWY_ATTR {
      const auto p = hn::Exp(d, hn::Sub(load(d, score_seen + i), hn::Set(d, logsumexp)));
      store(p, d, score_seen + i);
      store(hn::Mul(p, hn::Sub(load(d, grad_seen + i), hn::Set(d, delta))), d, grad_seen + i);
    });
  }
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(exponentials);
HWY_EXPORT(divide);
HWY_EXPORT(dot);
HWY_EXPORT(probabilities_and_gradients);

void cpu::exponentials_(float* score, const ScoreBlock& block, float* most, float* sum, float* out, int64_t head_dim) {
  HWY_DYNAMIC_DISPATCH(exponentials)(score, block, most, sum, out, head_dim);
}

void cpu::divide_(float* out, const float* sum, const float* most, float* logsumexp, int64_t rows, int64_t head_dim) {
  HWY_DYNAMIC_DISPATCH(divide)(out, sum, most, logsumexp, rows, head_dim);
}

void cpu::dot_rows(float* product, const float* a, const float* b, int64_t rows, int64_t head_dim) {
  HWY_DYNAMIC_DISPATCH(dot)(product, a, b, rows, head_dim);
}

void cpu::probabilities_and_gradients_(float* score, float* grad, const ScoreBlock& block, const float* logsumexp,
                                       const float* delta) {
  HWY_DYNAMIC_DISPATCH(probabilities_and_gradients)(score, grad, block, logsumexp, delta);
}

}  // namespace conclave
#endif  // HWY_ONCE
