#include "moe/load_statistics.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace conclave {
namespace {

Balance micro_step(std::vector<double> count_LE, int64_t layers, double aux = 0, double z = 0, double confidence = 0) {
  Balance balance;
  balance.count_LE = at::tensor(count_LE, at::kDouble).view({layers, -1});
  balance.aux_loss_L = at::full({layers}, aux, at::kDouble);
  balance.z_loss_L = at::full({layers}, z, at::kDouble);
  balance.confidence_L = at::full({layers}, confidence, at::kDouble);
  return balance;
}

LoadStatistics of_step(std::vector<double> count_LE, int64_t layers) {
  LoadStatistics load;
  load.add(micro_step(std::move(count_LE), layers));
  return load;
}

TEST(LoadStatistics, imbalance_is_maximum_over_mean_averaged_over_layers) {
  EXPECT_DOUBLE_EQ(of_step(std::vector<double>(12, 5.0), 3).imbalance(), 1.0);
  EXPECT_DOUBLE_EQ(of_step({8, 0, 0, 0, 2, 2, 2, 2}, 2).imbalance(), 2.5);
}

// By hand: shares 1/2, 1/4, 1/4, 0 have 1.5 bits of 2.
TEST(LoadStatistics, shares_and_entropy_of_known_loads) {
  const LoadStatistics load = of_step({4, 2, 2, 0, 9, 0, 0, 0, 3, 3, 3, 3}, 3);
  EXPECT_TRUE(load.share_LE()[0].equal(at::tensor({0.5, 0.25, 0.25, 0.0}, at::kDouble)));
  EXPECT_NEAR(load.entropy_L()[0].item<double>(), 0.75, 1e-15);
  EXPECT_EQ(load.entropy_L()[1].item<double>(), 0.0);
  EXPECT_NEAR(load.entropy_L()[2].item<double>(), 1.0, 1e-15);
  EXPECT_TRUE(load.imbalance_L().equal(at::tensor({2.0, 4.0, 1.0}, at::kDouble)));
  EXPECT_EQ(of_step({7, 7}, 2).entropy_L().sum().item<double>(), 2.0);  // a single expert
}

// Choices of micro-steps are counted together; their losses are averaged.
TEST(LoadStatistics, spans_the_micro_steps_of_a_step) {
  LoadStatistics load;
  const Balance first = micro_step({4, 0}, 1, 2.0, 1.0, 0.5), second = micro_step({0, 4}, 1, 4.0, 3.0, 0.7);
  load.add(first);
  load.add(second);
  EXPECT_DOUBLE_EQ(load.imbalance(), 1.0);
  EXPECT_DOUBLE_EQ(load.aux_loss_L().item<double>(), 3.0);
  EXPECT_DOUBLE_EQ(load.z_loss_L().item<double>(), 2.0);
  EXPECT_DOUBLE_EQ(load.confidence_L().item<double>(), 0.6);
  EXPECT_TRUE(first.count_LE[0].equal(at::tensor({4.0, 0.0}, at::kDouble)));  // not summed into
}

}  // namespace
}  // namespace conclave
