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

// Sinkhorn's iteration as the paper writes it, in plain loops over one rank's tokens: rows and columns of the scores
// are divided by their sums in turn.
std::vector<std::vector<double>> sinkhorn_plainly(const at::Tensor& logits_TE, int64_t iterations) {
  const int64_t tokens = logits_TE.size(0), experts = logits_TE.size(1);
  std::vector<std::vector<double>> p(tokens, std::vector<double>(experts));
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t e = 0; e < experts; ++e) p[t][e] = std::exp(logits_TE[t][e].item<double>());
  for (int64_t i = 0; i < iterations; ++i) {
    for (auto& row : p) {
      double sum = 0;
      for (double value : row) sum += value;
      for (double& value : row) value /= sum;
    }
    for (int64_t e = 0; e < experts; ++e) {
      double sum = 0;
      for (const auto& row : p) sum += row[e];
      for (auto& row : p) row[e] *= static_cast<double>(tokens) / (static_cast<double>(experts) * sum);
    }
  }
  return p;
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
  for (const auto& [tokens, experts] : {std::pair<int64_t, int64_t>{1, 3}, {40, 8}, {33, 5}, {64, 64}}) {
    SCOPED_TRACE(fmt::format("seed {}: T={} E={}", seed, tokens, experts));
    const at::Tensor logits = random_logits(tokens, experts, at::kDouble);
    for (const int64_t iterations : {1, 2, 7}) {
      const at::Tensor scale = sinkhorn_scale(logits, {.tolerance = 1e-15, .iterations = iterations}, world);
      const auto plain = sinkhorn_plainly(logits, iterations);
      at::Tensor scaled = at::softmax(logits, 1) * scale;
      for (int64_t t = 0; t < tokens; ++t) {
        // The plain rows differ by a factor each, which the choice within a token does not feel.
        const double factor = plain[t][0] / scaled[t][0].item<double>();
        for (int64_t e = 0; e < experts; ++e)
          EXPECT_NEAR(scaled[t][e].item<double>() * factor, plain[t][e], 1e-6 * plain[t][e]);
      }
    }
  }
}

TEST(Sinkhorn, evens_out_a_collapsed_router) {
  LocalCommunicator world("world");
  for (const int64_t top_k : {1, 2}) {
    const at::Tensor tilt = at::arange(8, at::kFloat).neg() * 2;  // nearly all tokens want the first experts
    const at::Tensor logits = random_logits(4096, 8, at::kFloat, 1) + tilt;
    SinkhornSelection selection({.top_k = top_k}, {}, world);
    const Routing plain = route(logits, {.top_k = top_k});
    const Routing even = selection.route_in_training(0, logits, {});
    EXPECT_GT(max_over_mean(counts_of(plain, 8)), 3.5);
    EXPECT_LT(max_over_mean(counts_of(even, 8)), 1.15) << "K=" << top_k;
    // The weights are the router's own: as if these experts had been chosen by hand.
    EXPECT_TRUE(even.weight_TK.equal(route_to(logits, {.top_k = top_k}, even.expert_of_choice_TK).weight_TK));
    EXPECT_TRUE(selection.route_in_evaluation(0, logits).expert_of_choice_TK.equal(plain.expert_of_choice_TK));
  }
}

TEST(Sinkhorn, stops_at_the_tolerance) {
  // Equal columns are balanced at the first look: one iteration, and the scale is 1.
  LocalCommunicator world("world");
  const at::Tensor scale = sinkhorn_scale(at::zeros({12, 4}), {.tolerance = 1e-9, .iterations = 1000}, world);
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

}  // namespace
}  // namespace conclave
