#include "kernels/router.h"

#include <algorithm>
#include <set>

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
      const Routing routing = route(logits, {.top_k = s.top_k});
      const double relative = (24 + s.experts) * eps_fp32;
      expect_close("probability", routing.score_TE, at::softmax(exact, 1), {relative, 0});
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
  expect_identical("all equal", route(flat, {.top_k = 3}).expert_of_choice_TK, first_three);
  expect_identical("all equal, reference", reference::route(flat, {.top_k = 3}).expert_of_choice_TK, first_three);

  const at::Tensor logits = at::tensor({1.0f, 3.0f, 2.0f, 3.0f, 2.0f, 2.0f}).view({1, 6}).to(at::kBFloat16);
  const at::Tensor expected = at::tensor({1, 3, 2, 4, 5}, at::kInt).view({1, 5});
  expect_identical("ties", route(logits, {.top_k = 5}).expert_of_choice_TK, expected);
  expect_identical("ties, reference", reference::route(logits, {.top_k = 5}).expert_of_choice_TK, expected);
}

TEST(Router, extreme_logits_and_not_a_number) {
  const at::Tensor logits = at::tensor({1e30f, -1e30f, 0.0f, 1e30f}).view({1, 4});
  const Routing routing = route(logits, {.top_k = 2});
  expect_close("probability", routing.score_TE, at::tensor({0.5f, 0.0f, 0.0f, 0.5f}).view({1, 4}), {});
  expect_identical("expert", routing.expert_of_choice_TK, at::tensor({0, 3}, at::kInt).view({1, 2}));

  // A token that diverged is still routed to distinct experts; its weights show it.
  const Routing lost = route(at::full({1, 4}, NAN), {.top_k = 3});
  EXPECT_TRUE(lost.weight_TK.isnan().all().item<bool>());
  std::set<int32_t> experts;
  for (int64_t k = 0; k < 3; ++k) experts.insert(lost.expert_of_choice_TK[0][k].item<int32_t>());
  EXPECT_EQ(experts.size(), 3u);
  EXPECT_GE(*experts.begin(), 0);
  EXPECT_LT(*experts.rbegin(), 4);
}

// Every option in some combination, for a router of `experts` experts.
std::vector<RouterOptions> all_options(int64_t experts, int64_t top_k) {
  std::vector<RouterOptions> options;
  for (const RouterScores scores : {RouterScores::softmax, RouterScores::sigmoid})
    for (const bool renormalize : {true, false})
      for (const double scale : {1.0, 2.5})
        options.push_back({.top_k = top_k, .scores = scores, .renormalize = renormalize, .scale = scale});
  for (const int64_t groups : {2, 4}) {
    for (int64_t kept = 1; kept <= groups; ++kept)
      if (experts % groups == 0 && experts / groups * kept >= top_k) {
        options.push_back({.top_k = top_k, .scores = RouterScores::sigmoid, .groups = groups, .top_groups = kept});
        options.push_back({.top_k = top_k,
                           .renormalize = false,
                           .scale = 16,
                           .groups = groups,
                           .top_groups = kept,
                           .best_of_group = 1});
      }
  }
  return options;
}

std::string print(const Size& s, const RouterOptions& o) {
  return fmt::format("T={} E={} K={} {} renormalize={} scale={} groups={}/{} by {}", s.tokens, s.experts, o.top_k,
                     o.scores == RouterScores::softmax ? "softmax" : "sigmoid", o.renormalize, o.scale, o.top_groups,
                     o.groups, o.best_of_group);
}

at::Tensor scores_of(const at::Tensor& logits, const RouterOptions& o) {
  return o.scores == RouterScores::softmax ? at::softmax(logits, 1) : at::sigmoid(logits);
}

at::Tensor weights_of(const at::Tensor& scores, const at::Tensor& choice_TK, const RouterOptions& o) {
  const at::Tensor chosen = scores.gather(1, choice_TK.to(at::kLong));
  return (o.renormalize ? chosen / chosen.sum(1, true) : chosen) * o.scale;
}

// The choice of one token by trying all: the experts sorted by (score + bias) among those of the best groups.
std::vector<int32_t> choose_plainly(const std::vector<double>& score, const RouterOptions& o) {
  const auto experts = static_cast<int64_t>(score.size()), size = experts / o.groups;
  std::vector<std::pair<double, int64_t>> groups;
  for (int64_t g = 0; g < o.groups; ++g) {
    std::vector<double> members(score.begin() + g * size, score.begin() + (g + 1) * size);
    std::sort(members.rbegin(), members.rend());
    groups.emplace_back(-(members[0] + (size > 1 && o.best_of_group > 1 ? members[1] : 0)), g);
  }
  std::sort(groups.begin(), groups.end());
  std::vector<std::pair<double, int32_t>> eligible;
  for (int64_t i = 0; i < o.top_groups; ++i)
    for (int64_t e = groups[i].second * size; e < (groups[i].second + 1) * size; ++e)
      eligible.emplace_back(-score[e], static_cast<int32_t>(e));
  std::sort(eligible.begin(), eligible.end());
  std::vector<int32_t> chosen;
  for (int64_t k = 0; k < o.top_k; ++k) chosen.push_back(eligible[k].second);
  return chosen;
}

// Oracle: sorting in plain C++ in double, and ATen's scores. No two scores are equal, and fp32 keeps their order:
// logits are multiples of 1/64 that differ within a token, and the bias multiples of 1/8.
TEST(RouterOptions, choose_and_weigh_as_sorting_does) {
  for (const Size& s : std::vector<Size>{{1, 8, 2}, {40, 8, 3}, {23, 16, 4}, {9, 4, 1}, {0, 8, 2}}) {
    std::vector<at::Tensor> rows;
    for (int64_t t = 0; t < s.tokens; ++t)
      rows.push_back(random_tensor({4 * s.experts}).argsort().narrow(0, 0, s.experts).to(at::kFloat) / 16 - 1);
    const at::Tensor logits = s.tokens > 0 ? at::stack(rows) : at::empty({0, s.experts});
    for (const RouterOptions& o : all_options(s.experts, s.top_k)) {
      for (const bool biased : {false, true}) {
        SCOPED_TRACE(print(s, o) + (biased ? " biased" : ""));
        const at::Tensor bias = biased ? random_integers(-4, 5, {s.experts}, at::kFloat) / 8 : at::Tensor();
        const at::Tensor exact = scores_of(logits.to(at::kDouble), o);
        const at::Tensor choosing = (biased ? exact + bias : exact).contiguous();
        at::Tensor expected = at::empty({s.tokens, o.top_k}, at::kInt);
        for (int64_t t = 0; t < s.tokens; ++t) {
          const double* row = choosing.const_data_ptr<double>() + t * s.experts;
          const std::vector<int32_t> chosen = choose_plainly({row, row + s.experts}, o);
          expected[t].copy_(at::tensor(chosen, at::kInt));
        }
        for (const Routing& routing : {route(logits, o, bias), reference::route(logits, o, bias)}) {
          expect_identical("expert", routing.expert_of_choice_TK, expected);
          const double relative = (24 + s.experts) * eps_fp32;
          expect_close("score", routing.score_TE, exact, {relative, 0});
          expect_close("weight", routing.weight_TK, weights_of(exact, expected, o), {2 * relative, 0});
        }
        // Choices made elsewhere: any distinct experts.
        const at::Tensor given = at::arange(o.top_k, at::kInt).expand({s.tokens, o.top_k}).contiguous();
        for (const Routing& routing : {route_to(logits, o, given), reference::route_to(logits, o, given)}) {
          expect_identical("given expert", routing.expert_of_choice_TK, given);
          expect_close("weight of given", routing.weight_TK, weights_of(exact, given, o),
                       {2 * (24 + s.experts) * eps_fp32, 0});
        }
      }
    }
  }
}

// Oracle: autograd in double over scores, gather, renormalization, plus sum_t,e probability * g_e plus z * sum_t
// logsumexp^2. Tolerance: a few roundings of double.
TEST(RouterReference, backward_equals_autograd) {
  for (const Size& s : sizes()) {
    if (s.tokens == 0) continue;
    for (const RouterOptions& o : all_options(s.experts, s.top_k)) {
      SCOPED_TRACE(print(s, o));
      const at::Tensor logits = leaf(random_tensor({s.tokens, s.experts}, at::kDouble) * 2);
      const Routing routing = reference::route(logits.detach(), o);
      LossTerms terms = make_terms(s, at::kDouble);
      if (o.scores == RouterScores::sigmoid) terms.z_coefficient = 0;
      const at::Tensor score = scores_of(logits, o);
      const at::Tensor loss = (weights_of(score, routing.expert_of_choice_TK, o) * terms.grad_weight_TK).sum() +
                              (score / score.sum(1, true) * terms.probability_gradient_E).sum() +
                              terms.z_coefficient * at::logsumexp(logits, {1}).square().sum();
      const at::Tensor expected = gradients(loss, at::ones_like(loss), {logits})[0];
      at::Tensor actual = garbage(logits.sizes(), at::kDouble);
      reference::route_backward(actual, routing, o, terms.grad_weight_TK, terms.probability_gradient_E,
                                terms.z_coefficient);
      expect_close("grad_logits", actual, expected, {1e-11, 1e-12});
    }
  }
}

// Oracle: the reference in double, on the fast path's routing. Tolerance: the dot over E experts of terms up to 5 and
// the division by the chosen sum (>= K / E) err by (E + 10) eps, times the scale; a bf16 result is rounded once more.
TEST(Router, backward_equals_reference) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const Size& s : sizes()) {
      for (const RouterOptions& o : all_options(s.experts, s.top_k)) {
        for (const bool balanced : {false, true}) {
          SCOPED_TRACE(print(s, o));
          const Routing routing = route(random_tensor({s.tokens, s.experts}, dtype), o);
          LossTerms terms = make_terms(s);
          if (!balanced) terms.probability_gradient_E = at::Tensor();
          if (o.scores == RouterScores::sigmoid) terms.z_coefficient = 0;
          const Routing exact{routing.score_TE.to(at::kDouble), routing.logsumexp_T.to(at::kDouble),
                              routing.expert_of_choice_TK, routing.weight_TK.to(at::kDouble)};
          at::Tensor expected = garbage({s.tokens, s.experts}, at::kDouble);
          reference::route_backward(expected, exact, o, terms.grad_weight_TK.to(at::kDouble),
                                    balanced ? terms.probability_gradient_E.to(at::kDouble) : at::Tensor(),
                                    terms.z_coefficient);
          at::Tensor actual = garbage({s.tokens, s.experts}, dtype);
          route_backward(actual, routing, o, terms.grad_weight_TK, terms.probability_gradient_E, terms.z_coefficient);
          expect_close("grad_logits", actual, expected, {rounding(dtype), (s.experts + 10) * eps_fp32 * 5 * o.scale});
        }
      }
    }
  }
}

// Oracle: sums in a plain loop in long double. Tolerance: T roundings of double.
TEST(Router, statistics_equal_a_plain_loop) {
  for (const Size& s : sizes()) {
    const Routing routing = route(random_tensor({s.tokens, s.experts}), {.top_k = s.top_k});
    std::vector<int64_t> count(s.experts);
    std::vector<long double> sum(s.experts);
    long double squares = 0, confidence = 0;
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t e = 0; e < s.experts; ++e) sum[e] += routing.score_TE.data_ptr<float>()[t * s.experts + e];
      const long double logsumexp = routing.logsumexp_T.data_ptr<float>()[t];
      squares += logsumexp * logsumexp;
      float highest = 0;
      for (int64_t e = 0; e < s.experts; ++e)
        highest = std::max(highest, routing.score_TE.data_ptr<float>()[t * s.experts + e]);
      confidence += highest;
      for (int64_t k = 0; k < s.top_k; ++k) ++count[routing.expert_of_choice_TK.data_ptr<int32_t>()[t * s.top_k + k]];
    }
    const RouterOptions options{.top_k = s.top_k};
    for (const RoutingStatistics& actual :
         {routing_statistics(routing, options), reference::routing_statistics(routing, options)}) {
      for (int64_t e = 0; e < s.experts; ++e) {
        EXPECT_EQ(actual.count_E[e].item<double>(), count[e]);
        EXPECT_NEAR(actual.probability_sum_E[e].item<double>(), static_cast<double>(sum[e]), 1e-12 * s.tokens);
      }
      EXPECT_NEAR(actual.logsumexp_square_sum.item<double>(), static_cast<double>(squares),
                  1e-13 * static_cast<double>(squares));
      EXPECT_NEAR(actual.confidence_sum.item<double>(), static_cast<double>(confidence), 1e-12 * s.tokens);
    }
  }
}

// A sigmoid's probabilities are its scores over their sum, which makes each token count once. Tolerance: fp32 scores.
TEST(Router, statistics_of_sigmoid_scores_count_each_token_once) {
  const RouterOptions options{.top_k = 2, .scores = RouterScores::sigmoid};
  const at::Tensor logits = random_tensor({700, 8});
  const at::Tensor exact = at::sigmoid(logits.to(at::kDouble));
  const at::Tensor expected = (exact / exact.sum(1, true)).sum(0);
  const Routing routing = route(logits, options);
  for (const RoutingStatistics& actual :
       {routing_statistics(routing, options), reference::routing_statistics(routing, options)}) {
    expect_close("probability sum", actual.probability_sum_E, expected, {20 * eps_fp32, 0});
    EXPECT_NEAR(actual.probability_sum_E.sum().item<double>(), 700.0, 700 * eps_fp32);
    EXPECT_NEAR(actual.confidence_sum.item<double>(), (exact / exact.sum(1, true)).amax(1).sum().item<double>(),
                700 * eps_fp32);
  }
}

TEST(Router, does_not_depend_on_threads) {
  const Size s{5000, 32, 2};
  const at::Tensor logits = random_tensor({s.tokens, s.experts});
  const LossTerms terms = make_terms(s);
  const RouterOptions options{.top_k = s.top_k};
  expect_same_for_any_threads([&] {
    const Routing routing = route(logits, {.top_k = s.top_k});
    const RoutingStatistics statistics = routing_statistics(routing, options);
    at::Tensor grad = garbage(logits.sizes());
    route_backward(grad, routing, options, terms.grad_weight_TK, terms.probability_gradient_E, terms.z_coefficient);
    return std::vector<at::Tensor>{routing.score_TE,
                                   routing.logsumexp_T,
                                   routing.expert_of_choice_TK,
                                   routing.weight_TK,
                                   statistics.probability_sum_E,
                                   statistics.logsumexp_square_sum,
                                   statistics.confidence_sum,
                                   grad};
  });
}

}  // namespace
}  // namespace conclave
