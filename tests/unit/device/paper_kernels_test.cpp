// Kernels on paper give tensors of the sizes and dtypes that the CPU's and the reference's give. Oracle: those.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "device/paper_device.h"
#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/linear.h"
#include "kernels/permute.h"
#include "kernels/rotary.h"
#include "kernels/shares.h"
#include "kernels/values.h"

namespace conclave {
namespace {

PaperMachine machine(bool is_gpu) {
  return {.is_gpu = is_gpu, .rates = {}, .collective_seconds = [](CollectivePattern, double, const GroupOnNodes&) {
            return 0.0;
          }};
}

at::Tensor on_paper(const at::Tensor& tensor) {
  return tensor.to(at::kMeta);
}

void expect_alike(const char* what, const at::Tensor& paper, const at::Tensor& computed) {
  EXPECT_EQ(paper.sizes(), computed.sizes()) << what;
  EXPECT_EQ(paper.scalar_type(), computed.scalar_type()) << what;
}

class PaperKernels : public ::testing::TestWithParam<bool> {
 protected:
  PaperDevice device_{machine(GetParam())};
};
INSTANTIATE_TEST_SUITE_P(All, PaperKernels, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "gpu" : "cpu"; });

TEST(KernelTables, have_every_kernel) {
#define CONCLAVE_EXPECT_KERNEL(op)          \
  EXPECT_NE(reference_kernels.op, nullptr); \
  EXPECT_NE(cpu_kernels().op, nullptr);     \
  EXPECT_NE(paper::kernel_table.op, nullptr);
  CONCLAVE_FOR_EACH_KERNEL(CONCLAVE_EXPECT_KERNEL)
#undef CONCLAVE_EXPECT_KERNEL
}

TEST_P(PaperKernels, route_as_the_cpus) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor logits = at::randn({70, 8}).to(dtype);
    const RouterOptions options{.top_k = 2};
    const Routing computed = route(logits, options), paper = route(on_paper(logits), options);
    expect_alike("scores", paper.score_TE, computed.score_TE);
    expect_alike("logsumexp", paper.logsumexp_T, computed.logsumexp_T);
    expect_alike("choices", paper.expert_of_choice_TK, computed.expert_of_choice_TK);
    expect_alike("weights", paper.weight_TK, computed.weight_TK);
    const Routing again = route_to(on_paper(logits), options, paper.expert_of_choice_TK);
    expect_alike("weights of given choices", again.weight_TK, computed.weight_TK);
    const RoutingStatistics sums = routing_statistics(computed, options), on = routing_statistics(paper, options);
    expect_alike("counts", on.count_E, sums.count_E);
    expect_alike("probabilities", on.probability_sum_E, sums.probability_sum_E);
    expect_alike("squares", on.logsumexp_square_sum, sums.logsumexp_square_sum);
    expect_alike("confidence", on.confidence_sum, sums.confidence_sum);
  }
}

TEST_P(PaperKernels, order_as_many_rows_as_are_assumed) {
  const at::Tensor choices = at::randint(-1, 8, {50, 2}, at::kInt);
  const ExpertOrder computed = order_by_expert(choices, 8);
  const ExpertOrder paper = order_by_expert(on_paper(choices), 8, computed.count_E);
  expect_alike("choices of rows", paper.choice_of_row_R, computed.choice_of_row_R);
  expect_alike("rows of choices", paper.row_of_choice_TK, computed.row_of_choice_TK);
  EXPECT_TRUE(paper.count_E.equal(computed.count_E));
  const std::vector<int64_t> received{3, 0, 2, 5};
  expect_alike("arrivals", order_arrivals(received, 2, at::kMeta).row_of_arrival_R,
               order_arrivals(received, 2, at::kCPU).row_of_arrival_R);
}

TEST_P(PaperKernels, give_what_the_others_give) {
  const at::Tensor logits = at::randn({9, 20}), targets = at::randint(20, {9}, at::kLong);
  expect_alike("loss", cross_entropy_sum(on_paper(logits), on_paper(targets)), cross_entropy_sum(logits, targets));
  expect_alike("squares", sum_of_squares_tensor(on_paper(at::ones({30}))), sum_of_squares_tensor(at::ones({30})));
  const RotaryTable table = rotary_table(6, {.dims = 8}, at::kCPU), paper = rotary_table(6, {.dims = 8}, at::kMeta);
  expect_alike("cosines", paper.cos_SD, table.cos_SD);
  expect_alike("sines", paper.sin_SD, table.sin_SD);
  const at::Tensor wanted = at::rand({5, 8}, at::kDouble);
  expect_alike("shares", shares_of(on_paper(wanted), 2), shares_of(wanted, 2));
  const at::Tensor index = at::tensor({3, 0, 7}, at::kInt);
  expect_alike("taken", take_values(on_paper(at::rand({4, 2})), on_paper(index)), take_values(at::rand({4, 2}), index));
  for (const bool transposed : {false, true}) {
    const at::Tensor weight = at::randn({256, 128});
    const Fp8Matrix quantized = cpu_kernels().quantize_weight(weight, transposed),
                    planned = paper::kernel_table.quantize_weight(on_paper(weight), transposed);
    expect_alike("weight in fp8", planned.value_XS, quantized.value_XS);
    expect_alike("its scales", planned.scale, quantized.scale);
  }
  const at::Tensor rows = at::randn({70, 256});
  const Fp8Matrix by_rows = quantize_rows(rows, at::kFloat8_e4m3fn),
                  by_columns = quantize_columns(rows, at::kFloat8_e5m2);
  const Fp8Matrix paper_rows = quantize_rows(on_paper(rows), at::kFloat8_e4m3fn),
                  paper_columns = quantize_columns(on_paper(rows), at::kFloat8_e5m2);
  expect_alike("rows in fp8", paper_rows.value_XS, by_rows.value_XS);
  expect_alike("their scales", paper_rows.scale, by_rows.scale);
  expect_alike("columns in fp8", paper_columns.value_XS, by_columns.value_XS);
  expect_alike("their scales", paper_columns.scale, by_columns.scale);
}

// Oracle: by hand. 2 x 3 x 4 x 5 operations.
TEST_P(PaperKernels, say_what_they_cost) {
  const auto room = [](at::IntArrayRef sizes) { return at::empty(sizes, at::device(at::kMeta)); };
  const double before = device_.clock().seconds();
  linear_forward(room({3, 4}), room({3, 5}), room({4, 5}));
  EXPECT_DOUBLE_EQ(device_.clock().seconds() - before, 2 * 3 * 4 * 5);
  const double products = device_.clock().seconds();
  copy_values(room({10}), room({10}));
  EXPECT_DOUBLE_EQ(device_.clock().seconds() - products, 2 * 10 * 4);
}

// The values that the host reads were never computed: what the reader assumes, or ones.
TEST_P(PaperKernels, give_the_host_what_is_assumed) {
  const at::Tensor counts = at::tensor({3, 4}, at::kLong);
  EXPECT_TRUE(to_host(on_paper(counts), counts).equal(counts));
  EXPECT_EQ(value_of(at::empty({}, at::device(at::kMeta).dtype(at::kDouble))), 1);
}

}  // namespace
}  // namespace conclave
