#include "moe/expert_selection.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "comm/local_communicator.h"
#include "moe/sinkhorn_selection.h"

namespace conclave {
namespace {

constexpr uint64_t seed = 17;

at::Tensor random_logits(int64_t tokens, int64_t experts, at::ScalarType dtype = at::kFloat, double spread = 2) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return (at::randn({tokens, experts}, generator) * spread).to(dtype);
}

std::vector<int64_t> counts_of(const Routing& routing, int64_t experts) {
  std::vector<int64_t> counts(experts);
  const at::Tensor flat = routing.expert_of_choice_TK.flatten();
  for (int64_t i = 0; i < flat.numel(); ++i) ++counts[flat[i].item<int>()];
  return counts;
}

double max_over_mean(const std::vector<int64_t>& counts) {
  double sum = 0;
  for (int64_t count : counts) sum += static_cast<double>(count);
  return static_cast<double>(*std::max_element(counts.begin(), counts.end())) * static_cast<double>(counts.size()) /
         sum;
}

// Sinkhorn's iteration in plain loops over one rank's tokens: in turn a factor for each row, found by bisection, with
// which its entries, at most 1, sum to top_k; and a factor for each column, which evens out the columns' sums.
std::vector<double> sinkhorn_plainly(const at::Tensor& logits_TE, int64_t top_k, int64_t iterations) {
  const int64_t tokens = logits_TE.size(0), experts = logits_TE.size(1);
  std::vector<double> scale(experts, 1.0);
  for (int64_t i = 0; i < iterations; ++i) {
    std::vector<double> demand(experts, 0.0);
    for (int64_t t = 0; t < tokens; ++t) {
      const auto entry = [&](int64_t e, double log_factor) {
        return std::min(1.0, std::exp(logits_TE[t][e].item<double>() + log_factor) * scale[e]);
      };
      double low = -300, high = 300;
      for (int halving = 0; halving < 100; ++halving) {
        const double middle = (low + high) / 2;
        double sum = 0;
        for (int64_t e = 0; e < experts; ++e) sum += entry(e, middle);
        (sum < static_cast<double>(top_k) ? low : high) = middle;
      }
      for (int64_t e = 0; e < experts; ++e) demand[e] += entry(e, high);
    }
    for (int64_t e = 0; e < experts; ++e)
      scale[e] *= static_cast<double>(tokens * top_k) / (static_cast<double>(experts) * demand[e]);
  }
  return scale;
}

TEST(RoundRobin, is_even_over_any_cut_of_the_stream) {
  struct Case {
    int64_t samples, sequence, experts, top_k;
  };
  for (const Case& c : {Case{1, 1, 1, 1}, Case{3, 7, 8, 2}, Case{5, 16, 7, 3}, Case{2, 9, 64, 8}, Case{0, 4, 8, 2}}) {
    SCOPED_TRACE(fmt::format("B={} S={} E={} K={}", c.samples, c.sequence, c.experts, c.top_k));
    std::vector<int64_t> samples;
    for (int64_t b = 0; b < c.samples; ++b) samples.push_back(100 + b);
    RoundRobinSelection selection({.top_k = c.top_k});
    const Routing routing =
        selection.route_in_training(3, random_logits(c.samples * c.sequence, c.experts), {samples, c.sequence});
    const std::vector<int64_t> counts = counts_of(routing, c.experts);
    const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
    EXPECT_LE(*most - *least, 1);
    // A sample alone gets what it gets among others: nothing depends on the rank it is on.
    for (int64_t b = 0; b < c.samples; ++b) {
      const std::vector<int64_t> one = {samples[b]};
      const Routing alone = selection.route_in_training(0, random_logits(c.sequence, c.experts), {one, c.sequence});
      EXPECT_TRUE(alone.expert_of_choice_TK.equal(routing.expert_of_choice_TK.narrow(0, b * c.sequence, c.sequence)));
    }
    for (int64_t t = 0; t < c.samples * c.sequence; ++t)
      EXPECT_EQ(std::get<0>(at::_unique(routing.expert_of_choice_TK[t])).numel(), c.top_k) << "experts are distinct";
  }
}

TEST(RoundRobin, evaluates_by_the_scores) {
  const at::Tensor logits = random_logits(20, 8);
  RoundRobinSelection selection({.top_k = 2});
  EXPECT_TRUE(selection.route_in_evaluation(0, logits).expert_of_choice_TK.equal(
      route(logits, {.top_k = 2}).expert_of_choice_TK));
}

// Oracle: the plain iteration. Tolerance: demands are counted in units of 2^-32 of a token.
TEST(Sinkhorn, scales_as_the_plain_iteration_does) {
  LocalCommunicator world("world");
  struct Case {
    int64_t tokens, experts, top_k;
  };
  for (const Case& c :
       {Case{1, 3, 1}, Case{40, 8, 1}, Case{40, 8, 2}, Case{33, 5, 4}, Case{20, 4, 4}, Case{30, 64, 8}}) {
    SCOPED_TRACE(fmt::format("seed {}: T={} E={} K={}", seed, c.tokens, c.experts, c.top_k));
    const at::Tensor logits = random_logits(c.tokens, c.experts, at::kDouble);
    for (const int64_t iterations : {1, 2, 7}) {
      const at::Tensor scale = sinkhorn_scale(logits, c.top_k, {.tolerance = 1e-15, .iterations = iterations}, world);
      const std::vector<double> plain = sinkhorn_plainly(logits, c.top_k, iterations);
      for (int64_t e = 0; e < c.experts; ++e) EXPECT_NEAR(scale[e].item<double>(), plain[e], 1e-6 * plain[e]);
    }
  }
}

TEST(Sinkhorn, evens_out_a_collapsed_router) {
  LocalCommunicator world("world");
  for (const int64_t top_k : {1, 2, 4}) {
    const at::Tensor tilt = at::arange(8, at::kFloat).neg() * 2;  // nearly all tokens want the first experts
    const at::Tensor logits = random_logits(4096, 8, at::kFloat, 1) + tilt;
    SinkhornSelection selection({.top_k = top_k}, {}, world);
    const Routing plain = route(logits, {.top_k = top_k});
    const Routing even = selection.route_in_training(0, logits, {});
    EXPECT_GT(max_over_mean(counts_of(plain, 8)), top_k == 4 ? 1.9 : 3.5);
    EXPECT_LT(max_over_mean(counts_of(even, 8)), 1.15) << "K=" << top_k;
    // The weights are the router's own: as if these experts had been chosen by hand.
    EXPECT_TRUE(even.weight_TK.equal(route_to(logits, {.top_k = top_k}, even.expert_of_choice_TK).weight_TK));
    EXPECT_TRUE(selection.route_in_evaluation(0, logits).expert_of_choice_TK.equal(plain.expert_of_choice_TK));
  }
}

TEST(Sinkhorn, stops_at_the_tolerance) {
  // Equal columns are balanced at the first look: one iteration, and the scale is 1.
  LocalCommunicator world("world");
  const at::Tensor scale = sinkhorn_scale(at::zeros({12, 4}), 2, {.tolerance = 1e-9, .iterations = 1000}, world);
  EXPECT_TRUE(at::allclose(scale, at::ones({4}, at::kDouble), 1e-9, 0));
}

// Oracle: the rule of the paper by hand.
TEST(Biased, moves_each_bias_against_its_load) {
  BiasedSelection selection({.top_k = 1}, 0.25, 2, 3, at::kCPU);
  EXPECT_TRUE(selection.state_LE().equal(at::zeros({2, 3})));
  selection.finish_step(at::tensor({6.0, 3.0, 0.0, 2.0, 2.0, 2.0}, at::kDouble).view({2, 3}));
  EXPECT_TRUE(selection.state_LE().equal(at::tensor({-0.25f, 0.0f, 0.25f, 0.0f, 0.0f, 0.0f}).view({2, 3})));

  // Scores .4 .3 .3: the first expert loses its lead in layer 0 alone; its weight is its score all the same.
  const at::Tensor logits = at::tensor({0.4f, 0.3f, 0.3f}).log().view({1, 3});
  const Routing first = selection.route_in_training(0, logits, {});
  const Routing second = selection.route_in_evaluation(1, logits);
  EXPECT_EQ(first.expert_of_choice_TK.item<int>(), 2);
  EXPECT_EQ(second.expert_of_choice_TK.item<int>(), 0);
  EXPECT_TRUE(selection.route_in_evaluation(0, logits).expert_of_choice_TK.equal(first.expert_of_choice_TK));
}

// A bias that belongs to the model counts under every rule, in training and evaluation; only its own rule moves it, and
// no rule carries it as a state of its own.
TEST(BiasOfModel, decides_under_every_rule) {
  const RouterOptions router{.top_k = 1};
  const at::Tensor logits = at::tensor({0.4f, 0.3f, 0.3f}).log().view({1, 3});
  const at::Tensor bias = at::tensor({0.0f, 0.0f, 0.0f, 0.0f, 0.5f, 0.0f}).view({2, 3});
  TopKSelection plain(router);
  BiasedSelection biased(router, 0.25, 2, 3, at::kCPU);
  for (ExpertSelection* selection : std::initializer_list<ExpertSelection*>{&plain, &biased}) {
    selection->use_bias_of_model(bias.clone());
    for (const int64_t layer : {0, 1}) {
      EXPECT_EQ(selection->route_in_training(layer, logits, {}).expert_of_choice_TK.item<int>(), layer);
      EXPECT_EQ(selection->route_in_evaluation(layer, logits).expert_of_choice_TK.item<int>(), layer);
    }
    EXPECT_FALSE(selection->state_LE().defined());
    selection->finish_step(at::tensor({6.0, 3.0, 0.0, 2.0, 2.0, 2.0}, at::kDouble).view({2, 3}));
  }
  EXPECT_TRUE(plain.bias_LE().equal(bias));
  const at::Tensor moved = at::tensor({-0.25f, 0.0f, 0.25f, 0.0f, 0.5f, 0.0f}).view({2, 3});
  EXPECT_TRUE(biased.bias_LE().equal(moved));
}

}  // namespace
}  // namespace conclave
