// A layer's experts on the GPU: one after the other, and with grouped products, whose weight gradients overlap on two
// streams. Oracle: the loop over experts on the CPU in double, on the same bf16 inputs.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "device/cuda_plugin.h"
#include "device_kernels.h"
#include "kernels/kernels.h"
#include "moe/grouped_experts.h"
#include "unit/moe/expert_case.h"

namespace conclave {
namespace {

using testing::expect_near;
using testing::ExpertCase;

// Three products in a row are rounded to bf16 on their way, and so is the activation.
constexpr double tolerance = 4.0 / 256;

// A copy: the backward pass writes over the rows.
ExpertCase moved(const ExpertCase& c, at::Device device, at::ScalarType dtype) {
  const auto move = [&](const at::Tensor& tensor) { return tensor.to(device, dtype, false, /*copy=*/true); };
  const at::ScalarType weight = dtype == at::kDouble ? at::kDouble : at::kFloat;
  return {{move(c.rows.row_RH), c.rows.weight_R.to(device, weight)},
          {move(c.weights.gate_up_LJH), move(c.weights.down_LHI)},
          move(c.grad_RH)};
}

struct Results {
  ExpertOutput output;
  ExpertRows grad;
  ExpertGradients gradients;
};

Results compute(const ExpertCase& c, const std::vector<int64_t>& rows_per_expert, bool grouped, bool accumulate) {
  const at::ScalarType wide = c.rows.weight_R.scalar_type();
  const auto ones = [&](const at::Tensor& of) { return at::ones(of.sizes(), of.options().dtype(wide)); };
  Results results{{}, {}, {{ones(c.weights.gate_up_LJH), accumulate}, {ones(c.weights.down_LHI), accumulate}}};
  results.output =
      (grouped ? grouped_experts_forward : experts_forward)(c.rows, rows_per_expert, c.weights, PreActivation::kept);
  results.grad = (grouped ? grouped_experts_backward : experts_backward)(c.grad_RH, c.rows, results.output.gate_up_RJ,
                                                                         rows_per_expert, c.weights, results.gradients);
  return results;
}

TEST(DeviceExperts, equal_the_loop_on_the_cpu) {
  const KernelsAsInTraining kernels;
  for (const std::vector<int64_t>& rows_per_expert : std::vector<std::vector<int64_t>>{
           {3, 500, 1, 64}, {0, 7, 0, 129}, {9}, {0, 0, 40}, {1, 0}, {40, 41, 42, 43, 44, 45, 46, 47, 48}})
    for (const bool accumulate : {true, false}) {
      const ExpertCase c = testing::make_expert_case(rows_per_expert, /*hidden=*/256, /*intermediate=*/192, 0.1);
      const Results expected = compute(moved(c, at::kCPU, at::kDouble), rows_per_expert, false, accumulate);
      for (const bool grouped : {true, false}) {
        SCOPED_TRACE(fmt::format("{} experts, {}, {}", rows_per_expert.size(), grouped ? "grouped" : "one by one",
                                 accumulate ? "added" : "written"));
        const ExpertCase on_device = moved(c, at::Device(at::kCUDA, 0), at::kBFloat16);
        EXPECT_TRUE(takes_grouped_products(on_device.rows, on_device.weights));
        const Results actual = compute(on_device, rows_per_expert, grouped, accumulate);
        const auto near = [](const char* name, const at::Tensor& of_device, const at::Tensor& exact) {
          expect_near(name, of_device.cpu(), exact, tolerance);
        };
        near("output", actual.output.row_RH, expected.output.row_RH);
        near("gradient of the rows", actual.grad.row_RH, expected.grad.row_RH);
        near("gradient of the routing weights", actual.grad.weight_R, expected.grad.weight_R);
        near("gradient of gate_up", actual.gradients.gate_up_LJH.tensor, expected.gradients.gate_up_LJH.tensor);
        near("gradient of down", actual.gradients.down_LHI.tensor, expected.gradients.down_LHI.tensor);
      }
    }
}

// What comes before is seen by all of them, and what comes after sees all of them, though each takes a while.
TEST(DeviceExperts, what_overlaps_keeps_its_place) {
  const auto on_device = at::device(at::kCUDA);
  const Kernels& kernels = *load_cuda_plugin(nullptr)->kernels;
  const at::Tensor matrix = at::eye(2048, on_device);
  for (int round = 0; round < 5; ++round) {
    at::Tensor source = at::zeros({2048, 2048}, on_device), sums = at::zeros({7, 2048, 2048}, on_device);
    std::vector<at::Tensor> room;  // nothing is allocated on either stream
    for (int i = 0; i < 7; ++i) room.push_back(at::empty_like(source));
    at::Tensor busy = at::mm(matrix, matrix);
    for (int i = 0; i < 10; ++i) at::mm_out(busy, matrix, matrix);
    source.fill_(round + 1);
    kernels.overlapping(7, [&](int64_t i) {
      at::mm_out(room[i], matrix, source);
      sums[i].add_(room[i], i);
    });
    const at::Tensor total = sums.sum(0);
    EXPECT_EQ(total.min().item<float>(), 21.0f * static_cast<float>(round + 1));
    EXPECT_EQ(total.max().item<float>(), 21.0f * static_cast<float>(round + 1));
  }
}

}  // namespace
}  // namespace conclave
