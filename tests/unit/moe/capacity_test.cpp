// Who is dropped. Oracle: sorting all choices of an expert (reference::apply_capacity), itself checked by hand once.
// Whole numbers: no tolerance.
#include "moe/capacity.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "comm/local_communicator.h"

namespace conclave {
namespace {

constexpr uint64_t seed = 21;

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
  const at::Tensor weight = at::tensor({0.1f, 0.5f, 0.3f, 0.5f}).view({4, 1});
  const auto kept = [&](KeptChoices which) {
    return reference::apply_capacity(expert, weight, 2, {1.0, which}).flatten();
  };
  EXPECT_TRUE(kept(KeptChoices::earliest).equal(at::tensor({0, 0, -1, -1}, at::kInt)));
  EXPECT_TRUE(kept(KeptChoices::most_probable).equal(at::tensor({-1, 0, -1, 0}, at::kInt)));
}

TEST(Capacity, equals_sorting) {
  LocalCommunicator alone("world");
  for (const int64_t experts : {1, 5, 64})
    for (const int64_t tokens : {0, 1, 37, 200})
      for (const int64_t top_k : {1, 3})
        for (const double factor : {0.3, 1.0, 1.5, 100.0})
          for (const KeptChoices kept : {KeptChoices::most_probable, KeptChoices::earliest})
            for (const bool equal_weights : {false, true}) {
              if (top_k > experts) continue;
              SCOPED_TRACE(fmt::format("seed {}: E={} T={} K={} factor {} kept {} equal {}", seed, experts, tokens,
                                       top_k, factor, static_cast<int>(kept), equal_weights));
              at::Generator generator = at::detail::createCPUGenerator(seed);
              // Uneven, and with weights that many choices share if asked.
              at::Tensor logits = at::randn({tokens, experts}, generator) - at::arange(experts) * 0.3;
              if (equal_weights) logits = logits.round();
              const Routing routing = route(logits, {.top_k = top_k});
              std::vector<int64_t> samples(static_cast<size_t>(tokens));
              std::iota(samples.begin(), samples.end(), 100);
              const at::Tensor actual = ExpertCapacity({factor, kept}, alone).apply(routing, {samples, 1});
              const at::Tensor expected =
                  reference::apply_capacity(routing.expert_of_choice_TK, routing.weight_TK, experts, {factor, kept});
              EXPECT_TRUE(actual.equal(expected)) << actual << expected;
            }
}

TEST(Capacity, drop_rate_is_what_is_above_it) {
  const at::Tensor count_LE = at::tensor({6.0, 2.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0}, at::kDouble).view({2, 4});
  EXPECT_DOUBLE_EQ(drop_rate(count_LE, 2), 4.0 / 16);
  EXPECT_DOUBLE_EQ(drop_rate(count_LE, 6), 0);
}

}  // namespace
}  // namespace conclave
