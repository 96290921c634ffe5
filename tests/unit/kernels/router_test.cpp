#include "kernels/router.h"

#include <set>

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

struct Size {
  int64_t tokens, experts, top_k;
};

const std::vector<Size>& sizes() {
  static const std::vector<Size> values = {{0, 8, 2},  {1, 1, 1},  {1, 8, 2},    {7, 2, 2},    {33, 8, 2},
                                           {17, 7, 3}, {65, 8, 8}, {257, 33, 4}, {600, 128, 8}};
  return values;
}

struct LossTerms {
  at::Tensor grad_weight_TK, probability_gradient_E;
  double z_coefficient = 0.03;
};

LossTerms make_terms(const Size& s, at::ScalarType dtype = at::kFloat) {
  return {random_tensor({s.tokens, s.top_k}, dtype), random_tensor({s.experts}, dtype)};
}

// Oracle: at::topk of at::softmax in double (no two logits are equal here). Weights from ATen's values.
// Tolerance: exp errs by an eps plus eps |logit - maximum| (<= 20), sums of E terms by E eps relative.
TEST(Router, equals_softmax_and_topk) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    for (const Size& s : sizes()) {
      const at::Tensor logits = random_tensor({s.tokens, s.experts}, dtype) * 2;
      const at::Tensor exact = logits.to(at::kDouble);
      const auto [value, expert] = at::topk(at::softmax(exact, 1), s.top_k, 1);
      const Routing routing = route(logits, s.top_k);
      const double relative = (24 + s.experts) * eps_fp32;
      expect_close("probability", routing.probability_TE, at::softmax(exact, 1), {relative, 0});
      expect_close("logsumexp", routing.logsumexp_T, at::logsumexp(exact, {1}), {0, relative + 10 * eps_fp32});
      expect_identical("expert", routing.expert_of_choice_TK, expert.to(at::kInt));
      expect_close("weight", routing.weight_TK, value / value.sum(1, true), {2 * relative, 0});
    }
  }
}

// bf16 logits collide often: choices are by descending probability, the lower expert first, on both paths.
TEST(Router, equal_probabilities_choose_the_lower_expert) {
  const at::Tensor flat = at::zeros({5, 9});
  const at::Tensor first_three = at::arange(3, at::kInt).expand({5, 3}).contiguous();
  expect_identical("all equal", route(flat, 3).expert_of_choice_TK, first_three);
  expect_identical("all equal, reference", reference::route(flat, 3).expert_of_choice_TK, first_three);

  const at::Tensor logits = at::tensor({1.0f, 3.0f, 2.0f, 3.0f, 2.0f, 2.0f}).view({1, 6}).to(at::kBFloat16);
  const at::Tensor expected = at::tensor({1, 3, 2, 4, 5}, at::kInt).view({1, 5});
  expect_identical("ties", route(logits, 5).expert_of_choice_TK, expected);
  expect_identical("ties, reference", reference::route(logits, 5).expert_of_choice_TK, expected);
}

TEST(Router, extreme_logits_and_not_a_number) {
  const at::Tensor logits = at::tensor({1e30f, -1e30f, 0.0f, 1e30f}).view({1, 4});
  const Routing routing = route(logits, 2);
  expect_close("probability", routing.probability_TE, at::tensor({0.5f, 0.0f, 0.0f, 0.5f}).view({1, 4}), {});
  expect_identical("expert", routing.expert_of_choice_TK, at::tensor({0, 3}, at::kInt).view({1, 2}));

  // A token that diverged is still routed to distinct experts; its weights show it.
  const Routing lost = route(at::full({1, 4}, NAN), 3);
  EXPECT_TRUE(lost.weight_TK.isnan().all().item<bool>());
  std::set<int32_t> experts;
  for (int64_t k = 0; k < 3; ++k) experts.insert(lost.expert_of_choice_TK[0][k].item<int32_t>());
  EXPECT_EQ(experts.size(), 3u);
  EXPECT_GE(*experts.begin(), 0);
  EXPECT_LT(*experts.rbegin(), 4);
}

// Oracle: autograd in double over softmax, gather, renormalization, plus sum_t,e probability * g_e plus z * sum_t
// logsumexp^2. Tolerance: a few roundings of double.
TEST(RouterReference, backward_equals_autograd) {
  for (const Size& s : sizes()) {
    if (s.tokens == 0) continue;
    const at::Tensor logits = leaf(random_tensor({s.tokens, s.experts}, at::kDouble) * 2);
    const Routing routing = reference::route(logits.detach(), s.top_k);
    const LossTerms terms = make_terms(s, at::kDouble);
    const at::Tensor probability = at::softmax(logits, 1);
    const at::Tensor chosen = probability.gather(1, routing.expert_of_choice_TK.to(at::kLong));
    const at::Tensor loss = (chosen / chosen.sum(1, true) * terms.grad_weight_TK).sum() +
                            (probability * terms.probability_gradient_E).sum() +
                            terms.z_coefficient * at::logsumexp(logits, {1}).square().sum();
    const at::Tensor expected = gradients(loss, at::ones_like(loss), {logits})[0];
    at::Tensor actual = garbage(logits.sizes(), at::kDouble);
    reference::route_backward(actual, routing, terms.grad_weight_TK, terms.probability_gradient_E, terms.z_coefficient);
    expect_close("grad_logits", actual, expected, {1e-11, 1e-13});
  }
}

// Oracle: the reference in double, on the fast path's routing. Tolerance: the dot over E experts of terms up to 5 and
// the division by the chosen sum (>= K / E) err by (E + 10) eps; a bf16 result is rounded once more.
TEST(Router, backward_equals_reference) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const Size& s : sizes()) {
      for (const bool balanced : {false, true}) {
        const Routing routing = route(random_tensor({s.tokens, s.experts}, dtype), s.top_k);
        LossTerms terms = make_terms(s);
        if (!balanced) terms.probability_gradient_E = at::Tensor();
        const Routing exact{routing.probability_TE.to(at::kDouble), routing.logsumexp_T.to(at::kDouble),
                            routing.expert_of_choice_TK, routing.weight_TK.to(at::kDouble)};
        at::Tensor expected = garbage({s.tokens, s.experts}, at::kDouble);
        reference::route_backward(expected, exact, terms.grad_weight_TK.to(at::kDouble),
                                  balanced ? terms.probability_gradient_E.to(at::kDouble) : at::Tensor(),
                                  terms.z_coefficient);
        at::Tensor actual = garbage({s.tokens, s.experts}, dtype);
        route_backward(actual, routing, terms.grad_weight_TK, terms.probability_gradient_E, terms.z_coefficient);
        expect_close("grad_logits", actual, expected, {rounding(dtype), (s.experts + 10) * eps_fp32 * 5});
      }
    }
  }
}

// Oracle: sums in a plain loop in long double. Tolerance: T roundings of double.
TEST(Router, statistics_equal_a_plain_loop) {
  for (const Size& s : sizes()) {
    const Routing routing = route(random_tensor({s.tokens, s.experts}), s.top_k);
    std::vector<int64_t> count(s.experts);
    std::vector<long double> sum(s.experts);
    long double squares = 0;
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t e = 0; e < s.experts; ++e) sum[e] += routing.probability_TE.data_ptr<float>()[t * s.experts + e];
      const long double logsumexp = routing.logsumexp_T.data_ptr<float>()[t];
      squares += logsumexp * logsumexp;
      for (int64_t k = 0; k < s.top_k; ++k) ++count[routing.expert_of_choice_TK.data_ptr<int32_t>()[t * s.top_k + k]];
    }
    for (const RoutingStatistics& actual : {routing_statistics(routing), reference::routing_statistics(routing)}) {
      for (int64_t e = 0; e < s.experts; ++e) {
        EXPECT_EQ(actual.count_E[e].item<double>(), count[e]);
        EXPECT_NEAR(actual.probability_sum_E[e].item<double>(), static_cast<double>(sum[e]), 1e-12 * s.tokens);
      }
      EXPECT_NEAR(actual.logsumexp_square_sum, static_cast<double>(squares), 1e-13 * static_cast<double>(squares));
    }
  }
}

TEST(Router, does_not_depend_on_threads) {
  const Size s{5000, 32, 2};
  const at::Tensor logits = random_tensor({s.tokens, s.experts});
  const LossTerms terms = make_terms(s);
  expect_same_for_any_threads([&] {
    const Routing routing = route(logits, s.top_k);
    const RoutingStatistics statistics = routing_statistics(routing);
    at::Tensor grad = garbage(logits.sizes());
    route_backward(grad, routing, terms.grad_weight_TK, terms.probability_gradient_E, terms.z_coefficient);
    return std::vector<at::Tensor>{routing.probability_TE,
                                   routing.logsumexp_T,
                                   routing.expert_of_choice_TK,
                                   routing.weight_TK,
                                   statistics.probability_sum_E,
                                   at::scalar_tensor(statistics.logsumexp_square_sum, at::kDouble),
                                   grad};
  });
}

TEST(RouterEntry, refuses_more_choices_than_experts) {
  EXPECT_THROW(route(at::zeros({3, 4}), 5), InvariantError);
  EXPECT_THROW(route(at::zeros({3, 4}), 0), InvariantError);
}

}  // namespace
}  // namespace conclave
