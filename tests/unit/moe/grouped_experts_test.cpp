// Grouped products against the loop over experts. at::_grouped_mm has a form for the CPU too, so that what is done with
// its results is tested where there is no GPU.
#include "moe/grouped_experts.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "unit/moe/expert_case.h"

namespace conclave {
namespace {

using testing::expect_near;

constexpr double bf16_rounding = 1.0 / 256;

testing::ExpertCase make_case(const std::vector<int64_t>& rows_per_expert) {
  return testing::make_expert_case(rows_per_expert, /*hidden=*/24, /*intermediate=*/16, /*deviation=*/0.2);
}

// Oracle: the loop, on the same bf16 inputs. Tolerance: each of the products between a tensor and the inputs is rounded
// to bf16 once on either way, three of them one after the other at most.
TEST(GroupedExperts, equal_the_loop_over_experts) {
  for (const std::vector<int64_t>& rows_per_expert :
       {std::vector<int64_t>{3, 5, 1}, {0, 7, 0, 2}, {9}, {0, 0, 40}, {1, 0}})
    for (const bool keep : {true, false})
      for (const bool accumulate : {true, false}) {
        const testing::ExpertCase c = make_case(rows_per_expert);
        const auto kept = keep ? PreActivation::kept : PreActivation::repeated;
        const ExpertOutput expected = experts_forward(c.rows, rows_per_expert, c.weights, kept);
        const ExpertOutput actual = grouped_experts_forward(c.rows, rows_per_expert, c.weights, kept);
        expect_near("output", actual.row_RH, expected.row_RH, 3 * bf16_rounding);
        ASSERT_EQ(actual.gate_up_RJ.defined(), keep);

        const auto zeros = [&](const at::Tensor& of) {
          return at::full(of.sizes(), accumulate ? 1.0 : 1e30, at::kFloat);
        };
        ExpertGradients of_loop{{zeros(c.weights.gate_up_LJH), accumulate}, {zeros(c.weights.down_LHI), accumulate}};
        ExpertGradients grouped{{zeros(c.weights.gate_up_LJH), accumulate}, {zeros(c.weights.down_LHI), accumulate}};
        const ExpertRows grad = grouped_experts_backward(
            c.grad_RH, c.rows, keep ? actual.gate_up_RJ.clone() : at::Tensor(), rows_per_expert, c.weights, grouped);
        const ExpertRows grad_of_loop = experts_backward(c.grad_RH, {c.rows.row_RH.clone(), c.rows.weight_R},
                                                         expected.gate_up_RJ, rows_per_expert, c.weights, of_loop);
        expect_near("gradient of the rows", grad.row_RH, grad_of_loop.row_RH, 3 * bf16_rounding);
        expect_near("gradient of the routing weights", grad.weight_R, grad_of_loop.weight_R, 3 * bf16_rounding);
        expect_near("gradient of gate_up", grouped.gate_up_LJH.tensor, of_loop.gate_up_LJH.tensor, 3 * bf16_rounding);
        expect_near("gradient of down", grouped.down_LHI.tensor, of_loop.down_LHI.tensor, 3 * bf16_rounding);
      }
}

TEST(GroupedExperts, are_not_taken_on_the_cpu) {
  const testing::ExpertCase c = make_case({4, 4});
  EXPECT_FALSE(takes_grouped_products(c.rows, c.weights));
}

}  // namespace
}  // namespace conclave
