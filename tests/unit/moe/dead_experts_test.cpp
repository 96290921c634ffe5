#include "moe/dead_experts.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace conclave {
namespace {

// Two layers of four experts: of 4000 choices a layer the mean is 1000, and 1 % of it 10.
at::Tensor counts(double last_of_first_layer, double first_of_second_layer) {
  return at::tensor({2000.0, 1000.0, 1000.0 - last_of_first_layer, last_of_first_layer,  //
                     first_of_second_layer, 1000.0, 1000.0, 2000.0 - first_of_second_layer},
                    at::kDouble)
      .view({2, 4});
}

std::vector<double> dead(const DeadExperts& experts) {
  const at::Tensor dead_L = experts.dead_L();
  return {dead_L[0].item<double>(), dead_L[1].item<double>()};
}

TEST(DeadExperts, a_hundred_starved_steps_in_a_row_and_not_one_less) {
  DeadExperts experts(2, 4);
  for (int step = 0; step < 99; ++step) experts.finish_step(counts(9, 0));
  EXPECT_EQ(dead(experts), (std::vector<double>{0, 0}));
  experts.finish_step(counts(9, 0));
  EXPECT_EQ(dead(experts), (std::vector<double>{1, 1}));
  experts.finish_step(counts(9, 500));  // tokens again
  EXPECT_EQ(dead(experts), (std::vector<double>{1, 0}));
  for (int step = 0; step < 99; ++step) experts.finish_step(counts(9, 0));
  EXPECT_EQ(dead(experts), (std::vector<double>{1, 0}));
}

TEST(DeadExperts, one_percent_of_the_mean_is_enough_to_live) {
  DeadExperts experts(2, 4);
  for (int step = 0; step < 200; ++step) experts.finish_step(counts(10, 10));
  EXPECT_EQ(dead(experts), (std::vector<double>{0, 0}));
}

TEST(DeadExperts, go_on_from_their_state) {
  DeadExperts before(2, 4), after(2, 4);
  for (int step = 0; step < 60; ++step) before.finish_step(counts(0, 10));
  after.restore(before.state_LE());
  for (int step = 0; step < 40; ++step) after.finish_step(counts(0, 10));
  EXPECT_EQ(dead(after), (std::vector<double>{1, 0}));
  EXPECT_EQ(before.state_LE().sum().item<double>(), 60.0);  // untouched by what the other counts
  EXPECT_THROW(after.restore(at::zeros({2, 3}, at::kDouble)), InvariantError);
}

}  // namespace
}  // namespace conclave
