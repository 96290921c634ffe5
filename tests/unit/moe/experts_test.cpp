// The local dispatcher and the experts together, against every token and choice in a plain loop in double.
#include "moe/experts.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "device/device.h"
#include "dispatch_at_once.h"
#include "moe/local_dispatcher.h"
#include "unit/moe/plain_experts.h"

namespace conclave {
namespace {

using testing::Answer;
using testing::expect_near;
using testing::in_double;
using testing::make_problem;
using testing::plain_loop;
using testing::Problem;
using testing::seed;
using testing::Shape;
using testing::Skew;

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> values = {{0, 8, 2, 8, 6},
                                            {1, 1, 1, 4, 4},
                                            {1, 8, 2, 8, 6},
                                            {5, 3, 3, 7, 5},
                                            {33, 7, 2, 16, 24},
                                            {64, 8, 2, 24, 20},
                                            {17, 64, 4, 8, 10},
                                            {9, 128, 8, 6, 5},
                                            {40, 11, 1, 9, 13},
                                            {50, 33, 3, 12, 8},
                                            {31, 8, 1, 16, 8, Skew::one_expert},
                                            {31, 8, 2, 16, 8, Skew::one_expert},
                                            {cpu_facts.expert_chunk_rows + 30, 3, 1, 5, 3, Skew::one_expert}};
  return values;
}

Answer dispatched(const Problem& p, bool keep_gate_up) {
  LocalDispatcher dispatcher(p.gate_up_EJH.size(0));
  const ExpertWeights weights{p.gate_up_EJH, p.down_EHI};
  const DispatchPlan plan = dispatcher.plan(p.expert_TK);
  ExpertRows rows = dispatch(dispatcher, plan, p.token_TH, p.weight_TK);
  ExpertOutput output = experts_forward(rows, plan.rows_per_expert, weights,
                                        keep_gate_up ? PreActivation::kept : PreActivation::repeated);
  EXPECT_EQ(output.gate_up_RJ.defined(), keep_gate_up);
  Answer a;
  a.out_TH = combine(dispatcher, plan, p.residual_TH, output.row_RH);
  // What is not written keeps the garbage.
  a.grad_gate_up_EJH = at::full_like(p.gate_up_EJH, 1e30);
  a.grad_down_EHI = at::full_like(p.down_EHI, 1e30);
  ExpertGradients gradients{{a.grad_gate_up_EJH}, {a.grad_down_EHI}};
  const at::Tensor grad_RH = combine_backward(dispatcher, plan, p.grad_TH);
  const ExpertRows grad =
      experts_backward(grad_RH, std::move(rows), output.gate_up_RJ, plan.rows_per_expert, weights, gradients);
  const DispatchGradient result = dispatch_backward(dispatcher, plan, grad);
  a.grad_token_TH = result.token_TH;
  a.grad_weight_TK = result.weight_TK;
  return a;
}

TEST(Experts, equal_a_plain_loop_over_tokens) {
  for (const Shape& s : shapes())
    for (const bool keep_gate_up : {true, false}) {
      SCOPED_TRACE(fmt::format("seed {}: T={} E={} K={} H={} I={}", seed, s.tokens, s.experts, s.top_k, s.hidden,
                               s.intermediate));
      const Problem problem = make_problem(s);
      const Answer expected = plain_loop(in_double(problem)), actual = dispatched(problem, keep_gate_up);
      const double relative = testing::relative_error_bound(s);
      expect_near("output", actual.out_TH, expected.out_TH, relative);
      expect_near("gradient of the tokens", actual.grad_token_TH, expected.grad_token_TH, relative);
      expect_near("gradient of the weights", actual.grad_weight_TK, expected.grad_weight_TK, relative);
      expect_near("gradient of gate_up", actual.grad_gate_up_EJH, expected.grad_gate_up_EJH, relative);
      expect_near("gradient of down", actual.grad_down_EHI, expected.grad_down_EHI, relative);
    }
}

// The oracle's own backward, by a central difference of its forward along a random direction of everything at once.
// Tolerance: with a step of 1e-5 the difference errs by 1e-10 (third derivatives) and 1e-16 / 1e-5 (cancellation).
TEST(Experts, oracle_backward_is_the_derivative_of_its_forward) {
  const Problem p = in_double(make_problem({13, 5, 2, 7, 6}));
  const Answer answer = plain_loop(p);
  at::Generator generator = at::detail::createCPUGenerator(seed + 1);
  const auto direction = [&](const at::Tensor& of) { return at::randn(of.sizes(), generator, of.options()); };
  const at::Tensor token = direction(p.token_TH), weight = direction(p.weight_TK), gate_up = direction(p.gate_up_EJH),
                   down = direction(p.down_EHI);
  const auto value = [&](double step) {
    Problem moved = p;
    moved.token_TH = p.token_TH + step * token;
    moved.weight_TK = p.weight_TK + step * weight;
    moved.gate_up_EJH = p.gate_up_EJH + step * gate_up;
    moved.down_EHI = p.down_EHI + step * down;
    return (plain_loop(moved).out_TH * p.grad_TH).sum().item<double>();
  };
  const double difference = (value(1e-5) - value(-1e-5)) / 2e-5;
  const double derivative = ((answer.grad_token_TH * token).sum() + (answer.grad_weight_TK * weight).sum() +
                             (answer.grad_gate_up_EJH * gate_up).sum() + (answer.grad_down_EHI * down).sum())
                                .item<double>();
  EXPECT_NEAR(difference, derivative, 1e-6 * std::abs(derivative));
}

// Of frozen experts nobody wants the weights' gradients: those of rows and routing weights are the same bits without.
TEST(Experts, weight_gradients_that_nobody_wants_are_left_out) {
  for (const Shape& shape : shapes()) {
    const Problem p = make_problem(shape);
    LocalDispatcher dispatcher(p.gate_up_EJH.size(0));
    const ExpertWeights weights{p.gate_up_EJH, p.down_EHI};
    const DispatchPlan plan = dispatcher.plan(p.expert_TK);
    std::vector<DispatchGradient> results;
    for (const bool wanted : {true, false}) {
      ExpertRows rows = dispatch(dispatcher, plan, p.token_TH, p.weight_TK);
      ExpertOutput output = experts_forward(rows, plan.rows_per_expert, weights, PreActivation::kept);
      ExpertGradients gradients;
      if (wanted) gradients = {{at::empty_like(p.gate_up_EJH)}, {at::empty_like(p.down_EHI)}};
      const ExpertRows grad = experts_backward(combine_backward(dispatcher, plan, p.grad_TH), std::move(rows),
                                               output.gate_up_RJ, plan.rows_per_expert, weights, gradients);
      results.push_back(dispatch_backward(dispatcher, plan, grad));
    }
    EXPECT_TRUE(at::equal(results[0].token_TH, results[1].token_TH));
    EXPECT_TRUE(at::equal(results[0].weight_TK, results[1].weight_TK));
  }
}

// Gradients of a second micro-step are added to those of the first. Twice the same is twice: exact.
TEST(Experts, weight_gradients_accumulate) {
  const Problem p = make_problem({9, 4, 2, 8, 6});
  LocalDispatcher dispatcher(4);
  const ExpertWeights weights{p.gate_up_EJH, p.down_EHI};
  const DispatchPlan plan = dispatcher.plan(p.expert_TK);
  at::Tensor gate_up = at::full_like(p.gate_up_EJH, 1e30), down = at::full_like(p.down_EHI, 1e30), once;
  for (const bool accumulate : {false, true}) {
    ExpertRows rows = dispatch(dispatcher, plan, p.token_TH, p.weight_TK);
    ExpertOutput output = experts_forward(rows, plan.rows_per_expert, weights, PreActivation::kept);
    ExpertGradients gradients{{gate_up, accumulate}, {down, accumulate}};
    experts_backward(combine_backward(dispatcher, plan, p.grad_TH), rows, output.gate_up_RJ, plan.rows_per_expert,
                     weights, gradients);
    if (!accumulate) once = gate_up.clone();
  }
  EXPECT_TRUE(at::allclose(gate_up, 2 * once, 1e-6, 1e-7));
}

// Powers of two for weights and K rows that sum exactly: dispatch, weight, combine gives every token back, bit for bit.
TEST(LocalDispatcher, dispatch_then_combine_with_uniform_weights_is_the_identity) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const int64_t top_k : {1, 2, 4})
      for (const int64_t tokens : {0, 1, 29}) {
        const Problem p = make_problem({tokens, 13, top_k, 24, 4});
        const at::Tensor token_TH = p.token_TH.to(dtype);
        LocalDispatcher dispatcher(13);
        const DispatchPlan plan = dispatcher.plan(p.expert_TK);
        const ExpertRows rows =
            dispatch(dispatcher, plan, token_TH, at::full({tokens, top_k}, 1.0f / static_cast<float>(top_k)));
        const at::Tensor weighted = rows.row_RH * rows.weight_R.unsqueeze(1).to(dtype);
        EXPECT_TRUE(combine(dispatcher, plan, at::zeros_like(token_TH), weighted).equal(token_TH))
            << tokens << " " << top_k;
      }
}

// The plan's own words: rows by expert, then by token; each choice has one row.
TEST(LocalDispatcher, plan_orders_rows_by_expert_then_token) {
  const at::Tensor expert_TK = at::tensor({2, 0, 2, 1, 0, 3}, at::kInt).view({3, 2});
  const DispatchPlan plan = LocalDispatcher(5).plan(expert_TK);
  EXPECT_EQ(plan.tokens, 3);
  EXPECT_EQ(plan.rows_per_expert, (std::vector<int64_t>{2, 1, 2, 1, 0}));
  EXPECT_TRUE(plan.token_of_row_R.equal(at::tensor({0, 2, 1, 0, 1, 2}, at::kInt)));
  EXPECT_TRUE(plan.choice_of_row_R.equal(at::tensor({1, 4, 3, 0, 2, 5}, at::kInt)));
  EXPECT_TRUE(plan.row_of_choice_TK.equal(at::tensor({3, 0, 4, 2, 1, 5}, at::kInt).view({3, 2})));
  EXPECT_EQ(plan.sent_per_rank, std::vector<int64_t>{6});
  EXPECT_EQ(plan.received_per_rank, std::vector<int64_t>{6});
}

}  // namespace
}  // namespace conclave
