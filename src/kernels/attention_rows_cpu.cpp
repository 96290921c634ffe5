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

#include "kernels/cpu.h"
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

// Row by row from the front: an element in T is written no further back than the score it comes from, and what lies
// behind the visible keys only when these have been read.
template <class T>
HWY_INLINE void exponentials_of(float* scores, const ScoreBlock& block, float* most, float* sum, float* out,
                                int64_t head_dim) {
  for (int64_t row = 0; row < block.rows; ++row) {
    float* score = scores + row * block.keys;
    T* written = reinterpret_cast<T*>(score);
    const Visible visible(block, row);
    std::fill(written, written + visible.begin, T{0});
    if (visible.begin < visible.end) {
      const float* seen = score + visible.begin;
      T* to = written + visible.begin;
      const auto count = static_cast<size_t>(visible.end - visible.begin);
      const float scale = block.scale, before = most[row], now = std::max(before, largest(seen, count) * scale);
      const float shrunk = std::exp(before - now);  // 0 in the first block
      if (shrunk != 1.0F) {
        float* out_row = out + row * head_dim;
        for_lanes(static_cast<size_t>(head_dim), [=](auto d, size_t i) HWY_ATTR {
          store(hn::Mul(load(d, out_row + i), hn::Set(d, shrunk)), d, out_row + i);
        });
      }
      most[row] = now;
      sum[row] = sum[row] * shrunk + sum_lanes(count, [=](auto d, size_t i) HWY_ATTR {
                   const auto e = hn::Exp(d, hn::MulSub(load(d, seen + i), hn::Set(d, scale), hn::Set(d, now)));
                   store(e, d, to + i);
                   return e;
                 });
    }
    std::fill(written + visible.end, written + block.keys, T{0});
  }
}

void exponentials(float* scores, const ScoreBlock& block, float* most, float* sum, float* out, int64_t head_dim) {
  exponentials_of<float>(scores, block, most, sum, out, head_dim);
}
void exponentials_in_bf16(float* scores, const ScoreBlock& block, float* most, float* sum, float* out,
                          int64_t head_dim) {
  exponentials_of<uint16_t>(scores, block, most, sum, out, head_dim);
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

template <class T>
HWY_INLINE void dot_of(float* product, const T* as, const T* bs, int64_t rows, int64_t head_dim) {
  for (int64_t row = 0; row < rows; ++row) {
    const T *a = as + row * head_dim, *b = bs + row * head_dim;
    product[row] = sum_lanes(static_cast<size_t>(head_dim),
                             [=](auto d, size_t i) HWY_ATTR { return hn::Mul(load(d, a + i), load(d, b + i)); });
  }
}

void dot(float* product, const float* a, const float* b, int64_t rows, int64_t head_dim) {
  dot_of(product, a, b, rows, head_dim);
}
void dot_in_bf16(float* product, const uint16_t* a, const uint16_t* b, int64_t rows, int64_t head_dim) {
  dot_of(product, a, b, rows, head_dim);
}

// In the order of exponentials_of.
template <class T>
HWY_INLINE void probabilities_and_gradients_of(float* scores, float* grads, const ScoreBlock& block,
                                               const float* logsumexps, const float* deltas) {
  for (int64_t row = 0; row < block.rows; ++row) {
    float *score = scores + row * block.keys, *grad = grads + row * block.keys;
    T *score_written = reinterpret_cast<T*>(score), *grad_written = reinterpret_cast<T*>(grad);
    const Visible visible(block, row);
    for (T* written : {score_written, grad_written}) std::fill(written, written + visible.begin, T{0});
    const float logsumexp = logsumexps[row], delta = deltas[row], scale = block.scale;
    const float *score_seen = score + visible.begin, *grad_seen = grad + visible.begin;
    T *score_to = score_written + visible.begin, *grad_to = grad_written + visible.begin;
    // Who sees one key alone has the probability 1 whatever the score: the gradient is 0, not what grad - delta rounds
    // to. With a sink beside that key it is not 1.
    const bool sees_one = !block.sinks && std::min(block.first_query + row % block.queries + 1, block.window) == 1;
    const float grad_scale = sees_one ? 0.0F : scale;
    for_lanes(static_cast<size_t>(visible.end - visible.begin), [=](auto d, size_t i) HWY_ATTR {
      const auto p = hn::Exp(d, hn::MulSub(load(d, score_seen + i), hn::Set(d, scale), hn::Set(d, logsumexp)));
      store(p, d, score_to + i);
      const auto difference = hn::Sub(load(d, grad_seen + i), hn::Set(d, delta));
      store(hn::Mul(hn::Mul(p, hn::Set(d, grad_scale)), difference), d, grad_to + i);
    });
    for (T* written : {score_written, grad_written}) std::fill(written + visible.end, written + block.keys, T{0});
  }
}

void probabilities_and_gradients(float* scores, float* grads, const ScoreBlock& block, const float* logsumexps,
                                 const float* deltas) {
  probabilities_and_gradients_of<float>(scores, grads, block, logsumexps, deltas);
}
void probabilities_and_gradients_in_bf16(float* scores, float* grads, const ScoreBlock& block, const float* logsumexps,
                                         const float* deltas) {
  probabilities_and_gradients_of<uint16_t>(scores, grads, block, logsumexps, deltas);
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(exponentials);
HWY_EXPORT(exponentials_in_bf16);
HWY_EXPORT(divide);
HWY_EXPORT(dot);
HWY_EXPORT(dot_in_bf16);
HWY_EXPORT(probabilities_and_gradients);
HWY_EXPORT(probabilities_and_gradients_in_bf16);

void cpu::exponentials_(float* score, at::ScalarType dtype, const ScoreBlock& block, float* most, float* sum,
                        float* out, int64_t head_dim) {
  if (dtype == at::kFloat)
    HWY_DYNAMIC_DISPATCH(exponentials)(score, block, most, sum, out, head_dim);
  else
    HWY_DYNAMIC_DISPATCH(exponentials_in_bf16)(score, block, most, sum, out, head_dim);
}

void cpu::divide_(float* out, const float* sum, const float* most, float* logsumexp, int64_t rows, int64_t head_dim) {
  HWY_DYNAMIC_DISPATCH(divide)(out, sum, most, logsumexp, rows, head_dim);
}

void cpu::dot_rows(float* product, const at::Tensor& a, const at::Tensor& b) {
  const int64_t rows = a.size(0), head_dim = a.size(1);
  if (a.scalar_type() == at::kFloat)
    HWY_DYNAMIC_DISPATCH(dot)(product, data<float>(a), data<float>(b), rows, head_dim);
  else
    HWY_DYNAMIC_DISPATCH(dot_in_bf16)(product, data<uint16_t>(a), data<uint16_t>(b), rows, head_dim);
}

void cpu::probabilities_and_gradients_(float* score, float* grad, at::ScalarType dtype, const ScoreBlock& block,
                                       const float* logsumexp, const float* delta) {
  if (dtype == at::kFloat)
    HWY_DYNAMIC_DISPATCH(probabilities_and_gradients)(score, grad, block, logsumexp, delta);
  else
    HWY_DYNAMIC_DISPATCH(probabilities_and_gradients_in_bf16)(score, grad, block, logsumexp, delta);
}

}  // namespace conclave
#endif  // HWY_ONCE
