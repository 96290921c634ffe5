#include "kernels/cross_entropy.h"

#include <ATen/ops/scalar_tensor.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "kernels/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cross_entropy_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

using cpu::data;

template <class T>
HWY_INLINE float row_maximum(const T* row, size_t n) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  auto m0 = hn::Set(d, -std::numeric_limits<float>::infinity()), m1 = m0, m2 = m0, m3 = m0;
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    m0 = hn::Max(m0, load(d, row + i));
    m1 = hn::Max(m1, load(d, row + i + lanes));
    m2 = hn::Max(m2, load(d, row + i + 2 * lanes));
    m3 = hn::Max(m3, load(d, row + i + 3 * lanes));
  }
  for (; i + lanes <= n; i += lanes) m0 = hn::Max(m0, load(d, row + i));
  float maximum = hn::GetLane(hn::MaxOfLanes(d, hn::Max(hn::Max(m0, m1), hn::Max(m2, m3))));
  const hn::CappedTag<float, 1> d1;
  for (; i < n; ++i) maximum = std::max(maximum, hn::GetLane(load(d1, row + i)));
  return maximum;
}

// exp(x - maximum); not-a-number stays one (Highway's Exp and Max lose it), so that a run that diverges shows it.
template <class D>
HWY_INLINE hn::Vec<D> shifted_exp(D d, hn::Vec<D> x, float maximum) {
  const auto shifted = hn::Sub(x, hn::Set(d, maximum));
  return hn::IfThenElse(hn::IsNaN(shifted), shifted, hn::Exp(d, shifted));
}

// Sum of exp(row - maximum). `keep` (fp32 only) leaves the exponentials in the row. Blocks go into a double: a
// vocabulary has 10^5 entries.
template <bool keep, class T>
HWY_INLINE double sum_exp(T* row, size_t n, float maximum) {
  constexpr size_t block = 2048;
  double sum = 0;
  for (size_t begin = 0; begin < n; begin += block) {
    T* part = row + begin;
    sum += sum_lanes(std::min(block, n - begin), [=](auto d, size_t i) HWY_ATTR {
      const auto e = shifted_exp(d, load(d, part + i), maximum);
      if constexpr (keep) store(e, d, part + i);
      return e;
    });
  }
  return sum;
}

template <class T>
float element(const T* p) {
  return hn::GetLane(load(hn::CappedTag<float, 1>(), p));
}

template <class T>
void loss_rows(double* loss, const at::Tensor& logits_CV, const int64_t* targets, int64_t begin, int64_t end) {
  const int64_t vocabulary = logits_CV.size(1);
  for (int64_t r = begin; r < end; ++r) {
    loss[r] = 0;
    if (targets[r] < 0) continue;
    T* row = data<T>(logits_CV) + r * vocabulary;
    const float maximum = row_maximum(row, vocabulary);
    const double sum = sum_exp</*keep=*/false>(row, vocabulary, maximum);
    loss[r] = std::log(sum) + maximum - element(row + targets[r]);
  }
}

template <class T>
void gradient_rows(double* loss, const at::Tensor& logits_CV, const int64_t* targets, double scale, int64_t begin,
                   int64_t end) {
  const int64_t vocabulary = logits_CV.size(1);
  constexpr bool keep = sizeof(T) == sizeof(float);  // a bf16 row cannot hold the exponentials: they are computed twice
  for (int64_t r = begin; r < end; ++r) {
    T* row = data<T>(logits_CV) + r * vocabulary;
    loss[r] = 0;
    if (targets[r] < 0) {
      std::fill_n(row, vocabulary, T{0});
      continue;
    }
    const float maximum = row_maximum(row, vocabulary);
    const float target_logit = element(row + targets[r]);
    const double sum = sum_exp<keep>(row, vocabulary, maximum);
    loss[r] = std::log(sum) + maximum - target_logit;
    const auto factor = static_cast<float>(scale / sum);
    for_lanes(vocabulary, [=](auto d, size_t i) HWY_ATTR {
      const auto x = load(d, row + i);
      store(hn::Mul(keep ? x : shifted_exp(d, x, maximum), hn::Set(d, factor)), d, row + i);
    });
    // The target's entry from the start again: softmax - 1 in double, so that a confident prediction keeps its digits.
    const double probability = std::exp(static_cast<double>(target_logit) - maximum) / sum;
    const hn::CappedTag<float, 1> d1;
    store(hn::Set(d1, static_cast<float>(scale * (probability - 1))), d1, row + targets[r]);
  }
}

void cross_entropy_loss_rows(double* loss, const at::Tensor& logits_CV, const int64_t* targets, int64_t begin,
                             int64_t end) {
  cpu::with_elements_of(logits_CV,
                        [&](auto element) { loss_rows<decltype(element)>(loss, logits_CV, targets, begin, end); });
}

void cross_entropy_gradient_rows(double* loss, const at::Tensor& logits_CV, const int64_t* targets, double scale,
                                 int64_t begin, int64_t end) {
  cpu::with_elements_of(
      logits_CV, [&](auto element) { gradient_rows<decltype(element)>(loss, logits_CV, targets, scale, begin, end); });
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(cross_entropy_loss_rows);
HWY_EXPORT(cross_entropy_gradient_rows);

namespace {

// The targets, seen to lie in [0, V) or to be -100: a row is written at its target.
const int64_t* checked_targets(const at::Tensor& logits_CV, const at::Tensor& targets_C) {
  const auto* targets = targets_C.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < targets_C.size(0); ++r) {
    check_invariant((targets[r] >= 0 && targets[r] < logits_CV.size(1)) || targets[r] == -100,
                    "cross_entropy: target {} of row {} is outside the vocabulary of {}", targets[r], r,
                    logits_CV.size(1));
  }
  return targets;
}

}  // namespace

at::Tensor cpu::cross_entropy(const at::Tensor& logits_CV, const at::Tensor& targets_C) {
  const int64_t* targets = checked_targets(logits_CV, targets_C);
  std::vector<double> loss(logits_CV.size(0));
  for_rows(logits_CV.size(0), logits_CV.size(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(cross_entropy_loss_rows)(loss.data(), logits_CV, targets, begin, end);
  });
  return at::scalar_tensor(std::accumulate(loss.begin(), loss.end(), 0.0), at::kDouble);
}

at::Tensor cpu::cross_entropy_with_gradient_(at::Tensor logits_CV, const at::Tensor& targets_C, double scale) {
  const int64_t* targets = checked_targets(logits_CV, targets_C);
  std::vector<double> loss(logits_CV.size(0));
  for_rows(logits_CV.size(0), logits_CV.size(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(cross_entropy_gradient_rows)(loss.data(), logits_CV, targets, scale, begin, end);
  });
  return at::scalar_tensor(std::accumulate(loss.begin(), loss.end(), 0.0), at::kDouble);
}

}  // namespace conclave
#endif  // HWY_ONCE
