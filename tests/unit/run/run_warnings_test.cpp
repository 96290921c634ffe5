// Oracle: loads and losses made by hand, on either side of each bound.
#include "run/run_warnings.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace conclave {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int64_t top_k = 2;  // of 8 experts: max / mean is 4 at most

// Of a model whose first layer is dense, two layers' counts: of the first one `busiest` of 800 choices fall on expert
// 0, of the second all experts have 100.
at::Tensor load_of(double busiest) {
  at::Tensor count_LE = at::full({2, 8}, 100.0, at::kDouble);
  count_LE[0] = at::full({8}, (800 - busiest) / 7, at::kDouble);
  count_LE[0][0] = busiest;
  return count_LE;
}

// All warnings of a run with these loads and losses, one a step.
class Training {
 public:
  explicit Training(const MoeConfig& moe = {}) {
    job_.moe = moe;
    job_.optimizer.lr = 0.25;
  }
  const std::vector<std::string>& after(int64_t steps, const at::Tensor& count_LE, double loss = 5) {
    for (int64_t i = 0; i < steps; ++i) {
      dead_.finish_step(count_LE);
      for (const std::string& warning : warnings_.after_step(++step_, loss, count_LE, dead_)) said_.push_back(warning);
    }
    return said_;
  }

 private:
  Job job_;
  DeadExperts dead_{2, 8};
  RunWarnings warnings_{job_, top_k, {1, 2}};
  int64_t step_ = 0;
  std::vector<std::string> said_;
};

TEST(RunWarnings, are_none_of_an_even_run) {
  EXPECT_THAT(Training().after(500, load_of(100)), IsEmpty());
}

TEST(RunWarnings, name_dead_experts_once_with_their_layers) {
  Training run({.aux_loss_layers = AuxLossLayers::together});
  at::Tensor load_LE = load_of(100);
  load_LE[1][3] = load_LE[1][4] = 0.6;  // of a mean of 63, of which 1 % is dead
  load_LE[1][5] = 2;
  EXPECT_THAT(run.after(99, load_LE), IsEmpty());
  EXPECT_THAT(run.after(101, load_LE),
              ElementsAre(AllOf(HasSubstr("step 100: "), HasSubstr("2 of 16 experts are dead"), HasSubstr("(layer 2)"),
                                HasSubstr("Set moe.aux_loss_layers (together) to each"))));
}

TEST(RunWarnings, name_a_load_that_stays_uneven) {
  // Of the two layers 3.2 and 1: 2.1 on average.
  Training run({.moe_load_balancing = LoadBalancing::none});
  EXPECT_THAT(run.after(199, load_of(320)), IsEmpty());
  EXPECT_THAT(run.after(300, load_of(320)),
              ElementsAre(AllOf(HasSubstr("step 200: "), HasSubstr("2.1 times the mean"), HasSubstr("4.0 the most"),
                                HasSubstr("Set moe.moe_load_balancing (none) to aux_loss"))));
  EXPECT_THAT(Training().after(500, load_of(290)), IsEmpty()) << "1.95 on average";
}

TEST(RunWarnings, are_none_while_the_load_becomes_more_even) {
  Training run;
  for (const double busiest : {760.0, 650.0, 550.0, 450.0, 350.0, 290.0}) run.after(100, load_of(busiest));
  EXPECT_THAT(run.after(100, load_of(290)), IsEmpty());
}

TEST(RunWarnings, look_at_the_load_of_many_steps_together) {
  Training run;
  for (int64_t i = 0; i < 400; ++i) {  // each step has another busiest expert
    at::Tensor load_LE = at::full({2, 8}, 200.0 / 7, at::kDouble);
    load_LE.select(1, i % 8).fill_(600);
    run.after(1, load_LE);
  }
  EXPECT_THAT(run.after(0, load_of(100)), IsEmpty());
}

TEST(RunWarnings, name_a_loss_that_is_far_above_its_start) {
  Training run;
  run.after(5, load_of(100), 6);
  run.after(9, load_of(100), 90);
  run.after(1, load_of(100), 8);  // it came back
  EXPECT_THAT(run.after(9, load_of(100), 90), IsEmpty());
  EXPECT_THAT(run.after(50, load_of(100), 90),
              ElementsAre(AllOf(HasSubstr("step 25: "), HasSubstr("is 90.00, and was 6.00"),
                                HasSubstr("optimizer.lr (0.25)"))));
  Training fine_tuning;
  fine_tuning.after(1, load_of(100), 1.2);
  EXPECT_THAT(fine_tuning.after(50, load_of(100), 2.15), IsEmpty()) << "a small loss may rise by 1";
}

TEST(RunWarnings, give_the_remedy_of_the_rule_in_use) {
  at::Tensor load_LE = load_of(100);
  load_LE[0][0] = 0;
  const auto said = [&](const MoeConfig& moe) { return Training(moe).after(100, load_LE).at(0); };
  EXPECT_THAT(said({.aux_loss_layers = AuxLossLayers::each}), HasSubstr("Raise moe.moe_aux_loss_coeff"));
  EXPECT_THAT(said({.moe_load_balancing = LoadBalancing::bias}), HasSubstr("Raise moe.bias_update_rate (0.001)"));
  EXPECT_THAT(said({.moe_load_balancing = LoadBalancing::sinkhorn}), HasSubstr("Raise moe.sinkhorn_iterations (50)"));
}

}  // namespace
}  // namespace conclave
