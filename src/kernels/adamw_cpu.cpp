#include "kernels/adamw.h"

#include <ATen/ops/scalar_tensor.h>

#include <numeric>
#include <vector>

#include "kernels/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/adamw_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

void adamw_elements(float* parameter, float* exp_avg, float* exp_avg_sq, const float* grad, AdamwFactors factors,
                    int64_t count) {
  for_lanes(count, [=](auto d, size_t i) HWY_ATTR {
    const auto g = hn::Mul(load(d, grad + i), hn::Set(d, factors.grad_scale));
    auto m = load(d, exp_avg + i);
    m = hn::MulAdd(hn::Set(d, factors.one_minus_beta1), hn::Sub(g, m), m);
    store(m, d, exp_avg + i);
    auto v = hn::Mul(load(d, exp_avg_sq + i), hn::Set(d, factors.beta2));
    v = hn::MulAdd(hn::Mul(g, g), hn::Set(d, factors.one_minus_beta2), v);
    store(v, d, exp_avg_sq + i);
    const auto root = hn::Div(hn::Sqrt(v), hn::Set(d, factors.root_correction2));
    const auto update = hn::Div(m, hn::Add(root, hn::Set(d, factors.eps)));
    const auto kept = hn::Mul(load(d, parameter + i), hn::Set(d, factors.keep));
    store(hn::NegMulAdd(hn::Set(d, factors.step_size), update, kept), d, parameter + i);
  });
}

// A square of fp32 can overflow fp32: every element is widened first.
double squares_of_elements(const float* x, int64_t count) {
#if HWY_TARGET == HWY_SCALAR
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += static_cast<double>(x[i]) * x[i];
  return total;
#else
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> narrow;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto widened = [=](int64_t i) HWY_ATTR { return hn::PromoteTo(d, hn::LoadU(narrow, x + i)); };
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    const auto x0 = widened(i), x1 = widened(i + lanes), x2 = widened(i + 2 * lanes), x3 = widened(i + 3 * lanes);
    s0 = hn::MulAdd(x0, x0, s0);
    s1 = hn::MulAdd(x1, x1, s1);
    s2 = hn::MulAdd(x2, x2, s2);
    s3 = hn::MulAdd(x3, x3, s3);
  }
  double total = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  for (; i < count; ++i) total += static_cast<double>(x[i]) * x[i];
  return total;
#endif
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(adamw_elements);
HWY_EXPORT(squares_of_elements);

void cpu::adamw_step(at::Tensor parameter, at::Tensor exp_avg, at::Tensor exp_avg_sq, const at::Tensor& grad,
                     const AdamwStep& step) {
  const AdamwFactors factors = factors_of(step);
  for_rows(parameter.numel(), 1, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(adamw_elements)
    (data<float>(parameter) + begin, data<float>(exp_avg) + begin, data<float>(exp_avg_sq) + begin,
     data<float>(grad) + begin, factors, end - begin);
  });
}

at::Tensor cpu::sum_of_squares(const at::Tensor& x) {
  constexpr int64_t block = 1 << 15;
  const int64_t count = x.numel();
  std::vector<double> partial((count + block - 1) / block);
  for_rows(static_cast<int64_t>(partial.size()), block, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      partial[b] =
          HWY_DYNAMIC_DISPATCH(squares_of_elements)(data<float>(x) + b * block, std::min(block, count - b * block));
    }
  });
  return at::scalar_tensor(std::accumulate(partial.begin(), partial.end(), 0.0), at::kDouble);
}

}  // namespace conclave
#endif  // HWY_ONCE
