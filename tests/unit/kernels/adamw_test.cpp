#include "kernels/adamw.h"

#include <cmath>

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

struct State {
  at::Tensor parameter, exp_avg, exp_avg_sq, grad;
};

State make_state(int64_t count) {
  return {random_tensor({count}), random_tensor({count}), random_tensor({count}).square(), random_tensor({count})};
}

State copy(const State& s, at::ScalarType dtype) {
  const auto c = [&](const at::Tensor& t) { return t.to(dtype, /*non_blocking=*/false, /*copy=*/true); };
  return {c(s.parameter), c(s.exp_avg), c(s.exp_avg_sq), c(s.grad)};
}

const std::vector<AdamwStep>& steps() {
  static const std::vector<AdamwStep> values = {
      {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .step = 1, .grad_scale = 1},
      {.lr = 3e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-6, .weight_decay = 0, .step = 7, .grad_scale = 0.125},
      {.lr = 0, .beta1 = 0, .beta2 = 0.5, .eps = 1e-8, .weight_decay = 1, .step = 100000, .grad_scale = 3},
  };
  return values;
}

void step_in_double(State& s, const AdamwStep& step) {
  double *p = s.parameter.data_ptr<double>(), *m = s.exp_avg.data_ptr<double>(), *v = s.exp_avg_sq.data_ptr<double>();
  const double* grad = s.grad.data_ptr<double>();
  for (int64_t i = 0; i < s.grad.numel(); ++i) {
    const double g = grad[i] * step.grad_scale;
    p[i] *= 1 - step.lr * step.weight_decay;
    m[i] = step.beta1 * m[i] + (1 - step.beta1) * g;
    v[i] = step.beta2 * v[i] + (1 - step.beta2) * g * g;
    const double unbiased_m = m[i] / (1 - std::pow(step.beta1, step.step));
    const double unbiased_v = v[i] / (1 - std::pow(step.beta2, step.step));
    p[i] -= step.lr * unbiased_m / (std::sqrt(unbiased_v) + step.eps);
  }
}

class Adamw : public SimdTest {};

// Oracles: the header's formulas in a plain loop in double; and ATen's own fused AdamW in fp32 (which takes 1 /
// grad_scale). Tolerance: some ten roundings, of the largest terms: |parameter| and |exp_avg| up to 5, the update lr *
// m / sqrt(v) up to a few hundred lr.
TEST_P(Adamw, equals_the_formulas_and_aten) {
  for (const AdamwStep& step : steps()) {
    for (const int64_t count : {0, 1, 7, 16, 17, 257, 1031}) {
      const State start = make_state(count);
      State expected = copy(start, at::kDouble), fast = copy(start, at::kFloat), plain = copy(start, at::kFloat);
      step_in_double(expected, step);
      adamw_step(fast.parameter, fast.exp_avg, fast.exp_avg_sq, fast.grad, step);
      reference::adamw_step(plain.parameter, plain.exp_avg, plain.exp_avg_sq, plain.grad, step);
      const double update = (expected.parameter - start.parameter).abs().sum().item<double>();
      for (const State* s : {&fast, &plain}) {
        expect_close("exp_avg", s->exp_avg, expected.exp_avg, {0, 10 * eps_fp32 * 15});
        expect_close("exp_avg_sq", s->exp_avg_sq, expected.exp_avg_sq, {10 * eps_fp32, 0});
        expect_close("parameter", s->parameter, expected.parameter, {10 * eps_fp32, 10 * eps_fp32 * (5 + update)});
        expect_identical("grad", s->grad, start.grad);
      }
      if (count == 0) continue;
      State aten = copy(start, at::kFloat);
      aten.grad.mul_(step.grad_scale);
      at::Tensor aten_step = at::scalar_tensor(static_cast<double>(step.step), at::kFloat);
      at::_fused_adamw_({aten.parameter}, {aten.grad}, {aten.exp_avg}, {aten.exp_avg_sq}, {}, {aten_step}, step.lr,
                        step.beta1, step.beta2, step.weight_decay, step.eps, /*amsgrad=*/false, /*maximize=*/false);
      expect_close("ATen's parameter", fast.parameter, aten.parameter, {10 * eps_fp32, 20 * eps_fp32 * (5 + update)});
    }
  }
}

TEST_P(Adamw, does_not_depend_on_threads) {
  const State start = make_state(100003);
  expect_same_for_any_threads([&] {
    State s = copy(start, at::kFloat);
    adamw_step(s.parameter, s.exp_avg, s.exp_avg_sq, s.grad, steps()[0]);
    return std::vector<at::Tensor>{s.parameter, s.exp_avg, s.exp_avg_sq,
                                   at::scalar_tensor(sum_of_squares(s.grad), at::kDouble)};
  });
}

// Oracle: a plain loop in long double. Tolerance: n roundings of double.
TEST_P(Adamw, sum_of_squares_is_exact_to_double) {
  for (const int64_t count : {0, 1, 7, 33, 32768, 32769, 100003}) {
    const at::Tensor x = random_tensor({count}) * 1e3;
    long double expected = 0;
    for (int64_t i = 0; i < count; ++i) {
      const long double value = x.data_ptr<float>()[i];
      expected += value * value;
    }
    EXPECT_NEAR(sum_of_squares(x), static_cast<double>(expected), 1e-12 * static_cast<double>(expected));
    EXPECT_NEAR(reference::sum_of_squares(x), static_cast<double>(expected), 1e-12 * static_cast<double>(expected));
  }
}

TEST_P(Adamw, sum_of_squares_does_not_overflow_and_shows_what_is_not_finite) {
  at::Tensor x = at::full({100}, 1e30f);
  EXPECT_NEAR(sum_of_squares(x) / 1e62, 1, 1e-6);
  x[99] = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(std::isinf(sum_of_squares(x)));
  x[3] = NAN;
  EXPECT_TRUE(std::isnan(sum_of_squares(x)));
}

TEST(AdamwEntry, refuses_tensors_that_do_not_fit) {
  State s = make_state(8);
  EXPECT_THROW(adamw_step(s.parameter, s.exp_avg.narrow(0, 0, 7), s.exp_avg_sq, s.grad, steps()[0]), InvariantError);
  EXPECT_THROW(adamw_step(s.parameter, s.exp_avg, s.exp_avg_sq, s.grad.to(at::kBFloat16), steps()[0]), InvariantError);
}

CONCLAVE_SIMD_TESTS(Adamw);

}  // namespace
}  // namespace conclave
