// The experts in fp8, on the CPU by the references of quantization and product.
#include "moe/fp8_experts.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numeric>

#include "device/device.h"
#include "kernels/fp8_quantize.h"
#include "kernels/swiglu.h"
#include "unit/moe/plain_experts.h"

namespace conclave {
namespace {

constexpr double bf16_rounding = 0x1p-9;  // relative, of one rounding
// Root mean square of a rounding's relative error, at most: uniform within half a spacing, which is 2^-3 (e4m3) or 2^-2
// (e5m2) of a number at most.
const double e4m3_error = 0x1p-4 / std::sqrt(3.0), e5m2_error = 0x1p-3 / std::sqrt(3.0);

struct Case {
  ExpertRows rows;
  ExpertWeights weights;
  at::Tensor grad_RH;
  std::vector<int64_t> rows_per_expert;
};

Case make_case(const std::vector<int64_t>& rows_per_expert, int64_t hidden = 160, int64_t intermediate = 96) {
  at::manual_seed(testing::seed);
  const auto experts = static_cast<int64_t>(rows_per_expert.size());
  const int64_t rows = std::accumulate(rows_per_expert.begin(), rows_per_expert.end(), int64_t{0});
  const auto normal = [](at::IntArrayRef sizes) { return at::randn(sizes).to(at::kBFloat16); };
  return {{normal({rows, hidden}), at::rand({rows}) + 0.1},
          {normal({experts, 2 * intermediate, hidden}) * 0.1, normal({experts, hidden, intermediate}) * 0.1},
          normal({rows, hidden}),
          rows_per_expert};
}

struct Answer {
  at::Tensor gate_up_RJ, out_RH, grad_row_RH, grad_weight_R, grad_gate_up_LJH, grad_down_LHI;
};

Answer in_fp8(const Case& c, PreActivation kept, double before = 1e30, bool accumulate = false) {
  Answer a;
  ExpertOutput output = fp8_experts_forward(c.rows, c.rows_per_expert, c.weights, kept);
  EXPECT_EQ(output.gate_up_RJ.defined(), kept == PreActivation::kept);
  if (output.gate_up_RJ.defined()) a.gate_up_RJ = output.gate_up_RJ.clone();
  a.out_RH = output.row_RH;
  a.grad_gate_up_LJH = at::full(c.weights.gate_up_LJH.sizes(), before, at::kFloat);
  a.grad_down_LHI = at::full(c.weights.down_LHI.sizes(), before, at::kFloat);
  ExpertGradients gradients{{a.grad_gate_up_LJH, accumulate}, {a.grad_down_LHI, accumulate}};
  const ExpertRows grad = fp8_experts_backward(c.grad_RH, {c.rows.row_RH.clone(), c.rows.weight_R}, output.gate_up_RJ,
                                               c.rows_per_expert, c.weights, gradients);
  a.grad_row_RH = grad.row_RH;
  a.grad_weight_R = grad.weight_R;
  return a;
}

using Rounding = std::function<at::Tensor(const at::Tensor&)>;
// What becomes of each operand of a product on its way into it, and of each result.
struct Roundings {
  Rounding forward_rows, gradient_rows, forward_columns, gradient_columns, weight, result;
};

at::Tensor unchanged(const at::Tensor& x) {
  return x;
}
Roundings none() {
  return {unchanged, unchanged, unchanged, unchanged, unchanged, unchanged};
}

Roundings of_header() {
  const auto rows = [](at::ScalarType format) {
    return [format](const at::Tensor& x) {
      return dequantize(quantize_rows(x.to(at::kFloat), format)).narrow(0, 0, x.size(0)).to(at::kDouble);
    };
  };
  const auto columns = [](at::ScalarType format) {
    return [format](const at::Tensor& x) {
      return dequantize(quantize_columns(x.to(at::kFloat), format)).narrow(1, 0, x.size(0)).t().to(at::kDouble);
    };
  };
  return {rows(at::kFloat8_e4m3fn),
          rows(at::kFloat8_e5m2),
          columns(at::kFloat8_e4m3fn),
          columns(at::kFloat8_e5m2),
          [](const at::Tensor& w) { return dequantize(quantize_weight(w.to(at::kFloat))).to(at::kDouble); },
          [](const at::Tensor& x) { return x.to(at::kBFloat16).to(at::kDouble); }};
}

// Every expert as a whole in double: the formulas of the header, with `by` applied to what goes into and out of
// products.
Answer plain(const Case& c, const Roundings& by) {
  const auto exact = [](const at::Tensor& x) { return x.to(at::kDouble); };
  Answer a{{},
           {},
           {},
           {},
           at::zeros(c.weights.gate_up_LJH.sizes(), at::kDouble),
           at::zeros(c.weights.down_LHI.sizes(), at::kDouble)};
  std::vector<at::Tensor> gate_ups, outs, grad_rows, grad_weights;
  int64_t begin = 0;
  for (size_t i = 0; i < c.rows_per_expert.size(); ++i) {
    const auto expert = static_cast<int64_t>(i);
    const auto rows_of = [&](const at::Tensor& x) { return exact(x.narrow(0, begin, c.rows_per_expert[i])); };
    const at::Tensor x = rows_of(c.rows.row_RH), weight = rows_of(c.rows.weight_R), grad = rows_of(c.grad_RH);
    const at::Tensor gate_up_weight = by.weight(exact(c.weights.gate_up_LJH[expert]));
    const at::Tensor down_weight = by.weight(exact(c.weights.down_LHI[expert]));
    const at::Tensor gate_up = by.result(by.forward_rows(x).matmul(gate_up_weight.t()));
    at::Tensor activation = at::empty({x.size(0), down_weight.size(1)}, at::kDouble);
    reference::swiglu_forward(activation, gate_up, weight);
    outs.push_back(by.result(by.forward_rows(by.result(activation)).matmul(down_weight.t())));
    const at::Tensor grad_activation = by.result(by.gradient_rows(grad).matmul(down_weight));
    at::Tensor grad_gate_up = at::empty_like(gate_up), grad_weight = at::empty_like(weight);
    reference::swiglu_backward(grad_gate_up, activation, grad_weight, grad_activation, gate_up, weight);
    activation = by.result(activation);
    grad_gate_up = by.result(grad_gate_up);
    a.grad_down_LHI[expert] = by.gradient_columns(grad).t().matmul(by.forward_columns(activation));
    a.grad_gate_up_LJH[expert] = by.gradient_columns(grad_gate_up).t().matmul(by.forward_columns(x));
    gate_ups.push_back(gate_up);
    grad_weights.push_back(grad_weight);
    grad_rows.push_back(by.result(by.gradient_rows(grad_gate_up).matmul(gate_up_weight)));
    begin += c.rows_per_expert[i];
  }
  a.gate_up_RJ = at::cat(gate_ups);
  a.out_RH = at::cat(outs);
  a.grad_row_RH = at::cat(grad_rows);
  a.grad_weight_R = at::cat(grad_weights);
  return a;
}

double relative_error(const at::Tensor& actual, const at::Tensor& exact) {
  return ((actual.to(at::kDouble) - exact).norm() / exact.norm()).item<double>();
}

void expect_error_within(const char* name, const at::Tensor& actual, const at::Tensor& exact, double most,
                         double least = 0) {
  ASSERT_EQ(actual.sizes(), exact.sizes()) << name;
  if (exact.numel() == 0) return;
  const double error = relative_error(actual, exact);
  EXPECT_LE(error, most) << name;
  EXPECT_GE(error, least) << name;
}

// Oracle: the header's formulas in double, rounded where the header says. Tolerance, of the norms: three roundings to
// bf16, one after the other; a number that falls on another side of one may fall on another side in fp8 too, which is
// rare enough to vanish in a norm.
TEST(Fp8Experts, round_what_the_header_says_and_nothing_else) {
  for (const std::vector<int64_t>& rows_per_expert :
       {std::vector<int64_t>{30, 5, 1}, {0, 17, 0, 128}, {200}, {cpu_facts.expert_chunk_rows + 30, 3}, {0, 0}}) {
    const Case c = make_case(rows_per_expert);
    const Answer actual = in_fp8(c, PreActivation::kept), expected = plain(c, of_header());
    const double most = 3 * bf16_rounding;
    expect_error_within("gate_up", actual.gate_up_RJ, expected.gate_up_RJ, most);
    expect_error_within("output", actual.out_RH, expected.out_RH, most);
    expect_error_within("gradient of the rows", actual.grad_row_RH, expected.grad_row_RH, most);
    expect_error_within("gradient of the routing weights", actual.grad_weight_R, expected.grad_weight_R, most);
    for (size_t i = 0; i < rows_per_expert.size(); ++i) {
      const auto expert = static_cast<int64_t>(i);
      const auto expect = [&](const char* name, const at::Tensor& one, const at::Tensor& other) {
        if (rows_per_expert[i] == 0)
          EXPECT_TRUE(one.eq(0).all().item<bool>()) << name;
        else
          expect_error_within(name, one, other, most);
      };
      expect("gradient of gate_up", actual.grad_gate_up_LJH[expert], expected.grad_gate_up_LJH[expert]);
      expect("gradient of down", actual.grad_down_LHI[expert], expected.grad_down_LHI[expert]);
    }
  }
}

// Oracle: the same formulas in double, nothing rounded. Bounds: independent errors add as squares; a product carries
// those of both operands, the activation those of gate and up, each twice over at most (the slope of silu relative to
// its value is below 2 for all but a few, small values), and bf16's are far below. Not less than a third: otherwise
// something was not in fp8.
TEST(Fp8Experts, err_by_the_formats_roundings) {
  const Case c = make_case({300, 256});
  const Answer actual = in_fp8(c, PreActivation::kept), exact = plain(c, none());
  const auto sum = [](double e4m3_roundings, double e5m2_roundings) {
    return std::sqrt(e4m3_roundings * e4m3_error * e4m3_error + e5m2_roundings * e5m2_error * e5m2_error);
  };
  const auto expect = [&](const char* name, const at::Tensor& one, const at::Tensor& other, double bound) {
    expect_error_within(name, one, other, bound, bound / 3);
  };
  expect("gate_up", actual.gate_up_RJ, exact.gate_up_RJ, sum(2, 0));
  // Of the activation: 2 roundings in gate, counted twice, 2 in up.
  expect("output", actual.out_RH, exact.out_RH, sum(6 + 2, 0));
  expect("gradient of the routing weights", actual.grad_weight_R, exact.grad_weight_R, sum(6 + 1, 1));
  expect("gradient of down", actual.grad_down_LHI, exact.grad_down_LHI, sum(6 + 1, 1));
  // Of the gradient of gate and up: those of the activation's, and of its own product.
  expect("gradient of gate_up", actual.grad_gate_up_LJH, exact.grad_gate_up_LJH, sum(6 + 1 + 1, 1 + 1));
  expect("gradient of the rows", actual.grad_row_RH, exact.grad_row_RH, sum(6 + 1 + 1, 1 + 1));
}

TEST(Fp8Experts, a_repeated_pre_activation_gives_the_same_bits) {
  const Case c = make_case({70, 0, cpu_facts.expert_chunk_rows + 5});
  const Answer kept = in_fp8(c, PreActivation::kept), repeated = in_fp8(c, PreActivation::repeated);
  EXPECT_TRUE(at::equal(kept.out_RH, repeated.out_RH));
  EXPECT_TRUE(at::equal(kept.grad_row_RH, repeated.grad_row_RH));
  EXPECT_TRUE(at::equal(kept.grad_weight_R, repeated.grad_weight_R));
  EXPECT_TRUE(at::equal(kept.grad_gate_up_LJH, repeated.grad_gate_up_LJH));
  EXPECT_TRUE(at::equal(kept.grad_down_LHI, repeated.grad_down_LHI));
}

// Twice the same is twice: exact.
TEST(Fp8Experts, weight_gradients_accumulate) {
  const Case c = make_case({20, 0, 9});
  const Answer once = in_fp8(c, PreActivation::kept), added = in_fp8(c, PreActivation::kept, 3.0, /*accumulate=*/true);
  EXPECT_TRUE(at::allclose(added.grad_gate_up_LJH, once.grad_gate_up_LJH + 3, 1e-6, 1e-6));
  EXPECT_TRUE(at::allclose(added.grad_down_LHI, once.grad_down_LHI + 3, 1e-6, 1e-6));
}

// The last experts lent by another rank: the same as one's own.
TEST(Fp8Experts, guests_are_experts_like_others) {
  Case c = make_case({20, 30, 5});
  const Answer own = in_fp8(c, PreActivation::repeated);
  const ExpertWeights all = c.weights;
  c.weights = {all.gate_up_LJH.narrow(0, 0, 1), all.down_LHI.narrow(0, 0, 1), all.gate_up_LJH.narrow(0, 1, 2),
               all.down_LHI.narrow(0, 1, 2)};
  const ExpertOutput output = fp8_experts_forward(c.rows, c.rows_per_expert, c.weights, PreActivation::repeated);
  EXPECT_TRUE(at::equal(output.row_RH, own.out_RH));
  const auto empty_for = [](const at::Tensor& weight) { return at::full(weight.sizes(), 1e30, at::kFloat); };
  ExpertGradients gradients{{empty_for(c.weights.gate_up_LJH)},
                            {empty_for(c.weights.down_LHI)},
                            {empty_for(c.weights.guest_gate_up_GJH)},
                            {empty_for(c.weights.guest_down_GHI)}};
  const ExpertRows grad = fp8_experts_backward(c.grad_RH, c.rows, {}, c.rows_per_expert, c.weights, gradients);
  EXPECT_TRUE(at::equal(grad.row_RH, own.grad_row_RH));
  EXPECT_TRUE(
      at::equal(at::cat({gradients.gate_up_LJH.tensor, gradients.guest_gate_up_GJH.tensor}), own.grad_gate_up_LJH));
  EXPECT_TRUE(at::equal(at::cat({gradients.down_LHI.tensor, gradients.guest_down_GHI.tensor}), own.grad_down_LHI));
}

TEST(Fp8Experts, a_row_that_is_not_finite_shows_in_what_comes_of_it_alone) {
  for (const float bad : {NAN, INFINITY}) {
    const Case c = make_case({10, 10});
    c.rows.row_RH[3][7] = bad;
    const Answer a = in_fp8(c, PreActivation::kept);
    EXPECT_TRUE(a.out_RH[3].isnan().all().item<bool>());
    EXPECT_EQ(a.out_RH.isnan().sum().item<int64_t>(), a.out_RH.size(1));
    EXPECT_TRUE(a.grad_gate_up_LJH[0].isnan().any().item<bool>());
    EXPECT_TRUE(a.grad_gate_up_LJH[1].isfinite().all().item<bool>());
  }
}

// The least squares of a small layer's outputs by gradient descent on fp32 weights, from the same start.
std::vector<double> losses_of_descent(bool fp8, int steps) {
  Case c = make_case({64, 48}, 128, 128);
  const auto teacher = [](const at::Tensor& w) { return (w.to(at::kFloat) + at::randn(w.sizes()) * 0.05); };
  const at::Tensor gate_up_there = teacher(c.weights.gate_up_LJH), down_there = teacher(c.weights.down_LHI);
  at::Tensor gate_up = c.weights.gate_up_LJH.to(at::kFloat), down = c.weights.down_LHI.to(at::kFloat);
  const at::ScalarType dtype = fp8 ? at::kBFloat16 : at::kFloat;
  const ExpertRows rows{c.rows.row_RH.to(dtype), c.rows.weight_R};
  const at::Tensor target_RH = experts_forward({c.rows.row_RH.to(at::kFloat), rows.weight_R}, c.rows_per_expert,
                                               {gate_up_there, down_there}, PreActivation::repeated)
                                   .row_RH;
  std::vector<double> losses;
  for (int step = 0; step < steps; ++step) {
    const ExpertWeights weights{gate_up.to(dtype), down.to(dtype)};
    const auto forward = fp8 ? fp8_experts_forward : experts_forward;
    const auto backward = fp8 ? fp8_experts_backward : experts_backward;
    const ExpertOutput output = forward(rows, c.rows_per_expert, weights, PreActivation::kept);
    const at::Tensor difference = output.row_RH.to(at::kFloat) - target_RH;
    losses.push_back(difference.square().mean().item<double>());
    ExpertGradients gradients{{at::empty_like(gate_up)}, {at::empty_like(down)}};
    backward(difference.to(dtype), {rows.row_RH.clone(), rows.weight_R}, output.gate_up_RJ, c.rows_per_expert, weights,
             gradients);
    constexpr double rate = 3e-4;
    gate_up.sub_(gradients.gate_up_LJH.tensor, rate);
    down.sub_(gradients.down_LHI.tensor, rate);
  }
  return losses;
}

// Oracle: the same descent in fp32. What fp8 adds to the loss is the square of its error of the output, the noise
// floor, which the two runs differ by at most; besides that the loss falls as fast.
TEST(Fp8Experts, a_descent_follows_that_in_fp32) {
  constexpr int steps = 60;
  const std::vector<double> exact = losses_of_descent(false, steps), rounded = losses_of_descent(true, steps);
  const Case c = make_case({64, 48}, 128, 128);
  const double output = plain(c, none()).out_RH.square().mean().item<double>();
  const double floor = 8 * e4m3_error * e4m3_error * output;
  EXPECT_LT(exact.back(), 0.15 * exact.front()) << "it learns";
  EXPECT_NE(exact, rounded);
  for (int step = 0; step < steps; ++step)
    EXPECT_NEAR(rounded[step], exact[step], floor + 0.05 * exact[step]) << "step " << step;
}

}  // namespace
}  // namespace conclave
