// Who is dropped. Oracle: sorting all choices of an expert (reference::apply_capacity), itself checked by hand once.
// Whole numbers: no tolerance.
#include "moe/capacity.h"
#include "capacity_reference.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "comm/local_communicator.h"

namespace conclave {
namespace {

constexpr uint64_t seed = 21;

at::Tensor chosen_scores(const Routing& routing) {
  return routing.score_TE.gather(1, routing.expert_of_choice_TK.to(at::kLong));
}

// What is kept of the choices of one rank that has all tokens, with a capacity of factor 1.
at::Tensor most_probable_of(const Routing& routing) {
  LocalCommunicator alone("world");
  std::vector<int64_t> samples(static_cast<size_t>(routing.score_TE.size(0)));
  std::iota(samples.begin(), samples.end(), 0);
  return ExpertCapacity({1.0, DropPolicy::probability}, alone).apply(routing, {samples, 1});
}

TEST(Capacity, is_a_share_of_the_mean_rounded_up) {
  EXPECT_EQ(expert_capacity(1.0, 16, 2, 8), 4);
  EXPECT_EQ(expert_capacity(1.25, 16, 2, 8), 5);
  EXPECT_EQ(expert_capacity(1.26, 16, 2, 8), 6);
  EXPECT_EQ(expert_capacity(0.01, 1, 1, 8), 1);
  EXPECT_EQ(expert_capacity(1.0, 0, 2, 8), 0);
}

// 4 tokens, K = 1, all to expert 0 of 2: the capacity of factor 1 is 2.
TEST(Capacity, reference_keeps_the_most_probable_or_the_earliest) {
  const at::Tensor expert = at::zeros({4, 1}, at::kInt);
  const at::Tensor score = at::tensor({0.1f, 0.5f, 0.3f, 0.5f}).view({4, 1});
  const auto kept = [&](DropPolicy which) {
    return reference::apply_capacity(expert, score, 2, {1.0, which}).flatten();
  };
  EXPECT_TRUE(kept(DropPolicy::position).equal(at::tensor({0, 0, -1, -1}, at::kInt)));
  EXPECT_TRUE(kept(DropPolicy::probability).equal(at::tensor({-1, 0, -1, 0}, at::kInt)));
}

TEST(Capacity, equals_sorting) {
  LocalCommunicator alone("world");
  for (const int64_t experts : {1, 5, 64})
    for (const int64_t tokens : {0, 1, 37, 200})
      for (const int64_t top_k : {1, 3})
        for (const double factor : {0.3, 1.0, 1.5, 100.0})
          for (const DropPolicy kept : {DropPolicy::probability, DropPolicy::position})
            for (const bool equal_scores : {false, true}) {
              if (top_k > experts) continue;
              SCOPED_TRACE(fmt::format("seed {}: E={} T={} K={} factor {} kept {} equal {}", seed, experts, tokens,
                                       top_k, factor, static_cast<int>(kept), equal_scores));
              at::Generator generator = at::detail::createCPUGenerator(seed);
              // Uneven, and with scores that many choices share if asked.
              at::Tensor logits = at::randn({tokens, experts}, generator) - at::arange(experts) * 0.3;
              if (equal_scores) logits = logits.round();
              const Routing routing = route(logits, {.top_k = top_k});
              std::vector<int64_t> samples(static_cast<size_t>(tokens));
              std::iota(samples.begin(), samples.end(), 100);
              const at::Tensor actual = ExpertCapacity({factor, kept}, alone).apply(routing, {samples, 1});
              const at::Tensor expected = reference::apply_capacity(routing.expert_of_choice_TK, chosen_scores(routing),
                                                                    experts, {factor, kept});
              EXPECT_TRUE(actual.equal(expected)) << actual << expected;
            }
}

// 4 tokens for expert 0 of 2, of which it keeps the 2 that want it most. Their weights are all 1.
TEST(Capacity, of_top_1_keeps_the_highest_scores) {
  const at::Tensor logits = at::tensor({0.5f, 0.0f, 3.0f, 0.0f, 1.0f, 0.0f, 2.0f, 0.0f}).view({4, 2});
  EXPECT_TRUE(most_probable_of(route(logits, {.top_k = 1})).flatten().equal(at::tensor({-1, 0, -1, 0}, at::kInt)));
}

// Expert 0's score is 0.2 of the first token and 0.5 of the second, its renormalized weight 0.95 and 0.56. It keeps
// one: 2 tokens x 2 choices / 4 experts.
TEST(Capacity, of_top_2_keeps_the_highest_scores_and_not_the_highest_shares) {
  const at::Tensor score = at::tensor({0.2f, 0.01f, 0.395f, 0.395f, 0.5f, 0.4f, 0.05f, 0.05f}).view({2, 4});
  const at::Tensor choice = at::tensor({0, 1, 0, 1}, at::kInt).view({2, 2});
  const Routing routing = route_to(score.log(), {.top_k = 2}, choice);
  ASSERT_GT(routing.weight_TK[0][0].item<float>(), routing.weight_TK[1][0].item<float>());
  EXPECT_TRUE(most_probable_of(routing).flatten().equal(at::tensor({-1, -1, 0, 1}, at::kInt)));
}

// Oracle: sorting by the scores that ATen gives the logits.
TEST(Capacity, ranks_by_score_whatever_becomes_of_the_weights) {
  constexpr int64_t tokens = 60, experts = 5;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const at::Tensor logits = at::randn({tokens, experts}, generator) - at::arange(experts) * 0.5;
  for (const RouterScores scores : {RouterScores::softmax, RouterScores::sigmoid})
    for (const int64_t top_k : {1, 2, 3})
      for (const bool renormalize : {false, true})
        for (const double scale : {1.0, 2.5}) {
          SCOPED_TRACE(fmt::format("seed {}: sigmoid {} K={} renormalize {} scale {}", seed,
                                   scores == RouterScores::sigmoid, top_k, renormalize, scale));
          const Routing routing =
              route(logits, {.top_k = top_k, .scores = scores, .renormalize = renormalize, .scale = scale});
          const at::Tensor score_TE =
              scores == RouterScores::softmax ? at::softmax(logits.to(at::kDouble), 1) : logits.sigmoid();
          const at::Tensor& choice_TK = routing.expert_of_choice_TK;
          const at::Tensor expected = reference::apply_capacity(choice_TK, score_TE.gather(1, choice_TK.to(at::kLong)),
                                                                experts, {1.0, DropPolicy::probability});
          EXPECT_TRUE(most_probable_of(routing).equal(expected));
        }
}

TEST(Capacity, drop_rate_is_what_is_above_it) {
  const at::Tensor count_LE = at::tensor({6.0, 2.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0}, at::kDouble).view({2, 4});
  EXPECT_DOUBLE_EQ(drop_rate(count_LE, 2), 4.0 / 16);
  EXPECT_DOUBLE_EQ(drop_rate(count_LE, 6), 0);
}

}  // namespace
}  // namespace conclave
