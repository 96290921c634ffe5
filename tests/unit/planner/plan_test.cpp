// Plans of whole jobs. Oracle of the reference job's numbers: by hand, from the model's shape (Mixtral 8x7B).
#include "planner/plan.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "mixtral_shape.h"
#include "planner/layout_search.h"

namespace conclave {
namespace {

// 64 GPUs as two replicas, expert degree 2 beside 16 shards, 2 x 2048 tokens, full recomputation; else
// examples/mixtral-8x7b.yaml.
CheckedJob reference_job() {
  Job job;
  job.data.micro_batch_size = 2;
  job.data.sequence_length = 2048;
  job.parallel.expert_parallel_degree = 2;
  job.parallel.hybrid_shard_degree = 16;
  job.moe.overload = OverloadPolicy::none;
  job.memory.activation_checkpointing = ActivationCheckpointing::full;
  job.precision.compute = Precision::bf16;
  job.moe.overload = OverloadPolicy::none;  // no expert is lent
  return check_job(job, MixtralShape(), 64);
}

// No products are grouped there: more rows need more memory.
CheckedJob reference_job_in_fp32() {
  CheckedJob job = reference_job();
  job.job.precision.compute = Precision::fp32;
  return job;
}

int64_t highest(const Plan& plan, MemoryCategory category) {
  return plan.classes.front().step.memory.peak_of.of[static_cast<int>(category)];
}

constexpr int64_t matrix = 4096ll * 14336, experts_of_layer = 8 * 3 * matrix;
constexpr int64_t dense_of_layer = 4096ll * (4096 + 2 * 1024) + 4096ll * 4096 + 2 * 4096 + 8 * 4096;

TEST(Plan, of_the_reference_job_is_what_a_hand_works_out) {
  const Plan plan = make_plan(reference_job(), "h100-80", read_device("h100-80"), 1.0);
  EXPECT_EQ(plan.parameters, 32 * (experts_of_layer + dense_of_layer) + 2 * 32000ll * 4096 + 4096);
  EXPECT_EQ(plan.parameters, 46'702'792'704) << "46.7 B";
  EXPECT_EQ(plan.parameters_per_token, 12'879'925'248) << "12.9 B";
  // 1/32 of everything: of the dense parameters by 32 shards, of the experts by 16 shards of half of them.
  EXPECT_NEAR(static_cast<double>(plan.parameters_of_rank), plan.parameters / 32.0, 32 * 34 * 16);
  EXPECT_EQ(highest(plan, MemoryCategory::parameters), 4 * plan.parameters_of_rank);
  EXPECT_EQ(highest(plan, MemoryCategory::moments), 8 * plan.parameters_of_rank);
  // The gathered layer that computes and the one that comes: half of the experts and all dense parameters, in bf16.
  EXPECT_NEAR(static_cast<double>(highest(plan, MemoryCategory::unsharded_parameters)),
              2 * 2 * (experts_of_layer / 2.0 + dense_of_layer), 1e6);
  // The gradient that is computed and the one that is being reduced, in fp32.
  EXPECT_NEAR(static_cast<double>(highest(plan, MemoryCategory::unsharded_gradients)),
              2 * 4 * (experts_of_layer / 2.0 + dense_of_layer), 1e6);
  EXPECT_EQ(highest(plan, MemoryCategory::logits), 1024ll * 32000 * 2);
  // The inputs of 32 layers and the stream, 4096 tokens of 4096 in bf16 each, and one layer's tensors.
  EXPECT_GT(highest(plan, MemoryCategory::activations), 33 * 4096ll * 4096 * 2);
  EXPECT_TRUE(plan.fits());
  EXPECT_GE(plan.peak_bytes(), 16.0 * static_cast<double>(plan.parameters_of_rank));

  EXPECT_EQ(plan.busiest.traffic.at({"shard", "all_gather"}).calls, 2 * 32 + 2 - 1)
      << "the last layer stays for its backward";
  EXPECT_EQ(plan.busiest.traffic.at({"expert_shard", "reduce_scatter"}).calls, 32);
  EXPECT_EQ(plan.busiest.traffic.at({"expert", "all_to_all"}).calls, 32 * 7);
  EXPECT_EQ(plan.busiest.traffic.at({"replica", "all_reduce"}).calls, 34);
}

TEST(Plan, imbalance_loads_the_busiest_rank_alone) {
  const DeviceDescription device = read_device("h100-80");
  const Plan even = make_plan(reference_job_in_fp32(), "h100-80", device, 1.0);
  const Plan uneven = make_plan(reference_job_in_fp32(), "h100-80", device, 1.5);
  ASSERT_EQ(even.classes.size(), 1u);
  ASSERT_EQ(uneven.classes.size(), 2u);
  const auto rows_of = [](const RankClass& ranks) {
    return ranks.step.memory.peak_of.of[static_cast<size_t>(MemoryCategory::dispatch)];
  };
  const RankClass& others = uneven.classes[uneven.classes[0].imbalance > 1 ? 1 : 0];
  EXPECT_GT(rows_of(uneven.classes[uneven.classes[0].imbalance > 1 ? 0 : 1]), rows_of(even.classes[0]));
  EXPECT_LT(rows_of(others), rows_of(even.classes[0]));
  EXPECT_EQ(uneven.classes[0].ranks + uneven.classes[1].ranks, 64);
  EXPECT_GE(even.worst.step.memory.peak_of.total, uneven.classes[0].step.memory.peak_of.total);
  EXPECT_DOUBLE_EQ(even.worst.imbalance, 2.0);
  EXPECT_GT(uneven.busiest.time.step_seconds, even.busiest.time.step_seconds);
  // Without expert parallelism each rank computes its own tokens, however they are routed.
  Job job = reference_job().job;
  job.parallel.expert_parallel_degree = 1;
  EXPECT_EQ(make_plan(check_job(job, MixtralShape(), 64), "h100-80", device, 1.5).classes.size(), 1u);
}

// Oracle: what ATen's backward pass of flash attention allocates (mha_bwd of its flash_api.cpp), by hand, beside the
// layer's own tensors of that moment. T = 2 x 2048 tokens, 32 query heads of 128 and 8 key heads.
TEST(Plan, counts_the_temporaries_of_flash_attention) {
  const Plan plan = make_plan(reference_job(), "h100-80", read_device("h100-80"), 1.0);
  constexpr int64_t T = 4096, queries = 32 * 128, packed = queries + 2 * 8 * 128, bf16 = 2, fp32 = 4;
  constexpr int64_t splits = 3;                          // 2 x 32 heads are three to 132 processors
  const int64_t flash = T * packed * bf16                // gradients of query, key and value
                        + T * 32 * fp32                  // sums of gradient times output
                        + splits * T * queries * fp32    // the query's gradient, accumulated
                        + 2 * T * queries * bf16;        // the key's and the value's, of each query head
  const int64_t layer = T * 4096 * bf16                  // normed tokens
                        + T * queries * bf16             // gradient of attention's output
                        + T * packed * bf16 + T * fp32;  // gradient of the projections; the norm's statistics
  const int64_t step = 2 * T * 8 + 2048 * 128 * fp32;    // the batch, rotary tables
  // Beside them are sums and statistics of a few KB.
  EXPECT_NEAR(static_cast<double>(highest(plan, MemoryCategory::workspace)),
              static_cast<double>(flash + layer + step + cublas_workspace_bytes), 64 << 10);
}

// 64 experts, 8 a rank, 8 choices of 1000 tokens: 1000 rows an expert are grouped, those of a busier rank are not.
TEST(Plan, ranks_whose_products_are_grouped_may_need_more_than_busier_ones) {
  Job job;
  job.data.micro_batch_size = 1;
  job.data.sequence_length = 1000;
  job.parallel.expert_parallel_degree = 8;
  job.moe.overload = OverloadPolicy::none;
  job.precision.compute = Precision::bf16;
  job.memory.activation_checkpointing = ActivationCheckpointing::full;
  MixtralShape model;
  model.num_local_experts = 64;
  model.num_experts_per_tok = 8;
  model.hidden_size = 2048;
  model.intermediate_size = 1024;
  const CheckedJob checked = check_job(job, model, 8);
  const DeviceDescription device = read_device("h100-80");
  const Plan even = make_plan(checked, "h100-80", device, 1.0), uneven = make_plan(checked, "h100-80", device, 1.1);
  ASSERT_EQ(uneven.classes.size(), 2u);
  EXPECT_GE(uneven.classes[0].step.memory.peak_of.total, uneven.classes[1].step.memory.peak_of.total);
  EXPECT_GE(even.worst.step.memory.peak_of.total, even.classes[0].step.memory.peak_of.total);
  // The pre-activations of all 8000 rows, which are computed again, and the activations.
  EXPECT_GT(highest(even, MemoryCategory::workspace), 8000 * 3 * 1024 * 2);
  // Where experts are lent instead, nothing is worse than to compute those of another rank.
  job.moe.overload = OverloadPolicy::spill;
  const Plan levelled = make_plan(check_job(job, model, 8), "h100-80", device, 1.0);
  EXPECT_TRUE(levelled.worst.is_at_times);
  EXPECT_GE(levelled.worst.step.memory.peak_of.total, levelled.classes[0].step.memory.peak_of.total);
  EXPECT_TRUE(levelled.classes[0].is_at_times);
  // An expert's weights in bf16 and their gradient in fp32, which no other rank has.
  EXPECT_GE(levelled.classes[0].step.memory.peak_of.total - levelled.classes[1].step.memory.peak_of.total,
            3 * 2048 * 1024 * 2);
}

TEST(Plan, overload_policies_bound_the_worst_routing) {
  const DeviceDescription device = read_device("h100-80");
  const auto planned = [&](OverloadPolicy policy) {
    CheckedJob job = reference_job_in_fp32();
    job.job.moe.overload = policy;
    return make_plan(job, "h100-80", device, 1.0);
  };
  const Plan none = planned(OverloadPolicy::none), chunk = planned(OverloadPolicy::chunk);
  EXPECT_DOUBLE_EQ(none.worst.imbalance, 2.0);
  EXPECT_DOUBLE_EQ(planned(OverloadPolicy::spill).worst.imbalance, 1.3);
  EXPECT_LT(chunk.worst.step.memory.peak_of.of[static_cast<int>(MemoryCategory::dispatch)],
            none.worst.step.memory.peak_of.of[static_cast<int>(MemoryCategory::dispatch)]);
  EXPECT_EQ(chunk.peak_bytes(), none.peak_bytes()) << "an even load is one part";
}

// Expert groups of 16 ranks span hosts of 8.
TEST(Plan, rows_travel_beside_the_experts_where_groups_span_hosts) {
  const DeviceDescription device = read_device("h100-80");
  MixtralShape model;
  model.num_local_experts = 16;
  Job job = reference_job().job;
  job.parallel.expert_parallel_degree = 16;
  job.parallel.hybrid_shard_degree = 2;
  const Plan chosen = make_plan(check_job(job, model, 64), "h100-80", device, 1.0);
  job.moe.dispatch_chunks = 1;
  const Plan one_part = make_plan(check_job(job, model, 64), "h100-80", device, 1.0);
  EXPECT_EQ(chosen.job.job.moe.dispatch_chunks, 2);
  EXPECT_LT(chosen.busiest.time.dispatch, 0.8 * one_part.busiest.time.dispatch);
}

TEST(Plan, bf16_is_refused_where_the_device_has_none) {
  DeviceDescription device = read_device("cpu");
  device.compute.bf16_flops = 0;
  EXPECT_THROW(make_plan(reference_job(), "mine", device, 1.0), UserError);
}

// By hand, of one expert's 1024 rows in backward: its three matrices in fp8, and the first two once more because their
// product is repeated; the rows in fp8 with a scale for 128 elements; the product twice, for it comes to lie beside its
// place first; and the activation. Beside them are cuBLAS's workspaces and small things; fewer tokens than in the
// reference job, whose attention needs more than its experts.
TEST(Plan, fp8_copies_are_counted) {
  const DeviceDescription device = read_device("h100-80");
  CheckedJob job = reference_job();
  job.job.data.sequence_length = 1024;
  const double seconds = make_plan(job, "h100-80", device, 1.0).busiest.time.products;
  job.job.precision.experts = ExpertPrecision::fp8;
  const Plan plan = make_plan(job, "h100-80", device, 1.0);
  constexpr double rows = 1024, hidden = 4096, intermediate = 14336, in_fp8 = 1 + 4.0 / 128, in_bf16 = 2;
  const double copies = 5.0 * matrix + rows * hidden * in_fp8;
  const double of_rows = rows * (2 * 2 * intermediate + intermediate) * in_bf16;
  EXPECT_NEAR(static_cast<double>(highest(plan, MemoryCategory::workspace)),
              copies + of_rows + static_cast<double>(cublas_workspace_bytes), 1e6);
  EXPECT_LT(plan.busiest.time.products, 0.7 * seconds);
}

TEST(Plan, fp8_is_refused_where_the_device_has_none) {
  CheckedJob job = reference_job();
  job.job.precision.experts = ExpertPrecision::fp8;
  EXPECT_THROW(make_plan(job, "a100-80", read_device("a100-80"), 1.0), UserError);
  EXPECT_THROW(make_plan(job, "cpu", read_device("cpu"), 1.0), UserError);
}

TEST(Search, says_of_every_layout_whether_it_fits) {
  const DeviceDescription device = read_device("h100-80");
  const CheckedJob job = reference_job();
  const LayoutSearch search = search_layouts(job, device, 1.0);
  // Expert degrees 1, 2, 4 and 8 leave 7, 6, 5 and 4 shard degrees; 2 reshard x 5 policies x 2 micro-batches.
  EXPECT_EQ(search.fit.size() + search.too_large.size(), (7u + 6 + 5 + 4) * 2 * 5 * 2);
  EXPECT_TRUE(search.refused.empty());
  ASSERT_FALSE(search.fit.empty());
  ASSERT_FALSE(search.too_large.empty());
  int given = 0;
  double last = 0;
  for (const LayoutOption& option : search.fit) {
    EXPECT_GE(option.left_bytes, 0);
    EXPECT_GE(option.time.step_seconds, last);
    last = option.time.step_seconds;
    if (option.is_given) {
      ++given;
      EXPECT_EQ(option.peak_bytes, static_cast<int64_t>(make_plan(job, "h100-80", device, 1.0).peak_bytes()));
    }
  }
  for (const LayoutOption& option : search.too_large) {
    EXPECT_LT(option.left_bytes, 0);
    EXPECT_FALSE(option.peak_moment.empty());
  }
  EXPECT_EQ(given, 1) << "the job as it stands is one of them, and fits";
}

TEST(Search, names_degrees_that_do_not_suit) {
  Job job = reference_job().job;
  job.parallel.expert_parallel_degree = 1;
  job.parallel.hybrid_shard_degree = 0;
  const LayoutSearch search = search_layouts(check_job(job, MixtralShape(), 6), read_device("h200-141"), 1.0);
  bool found = false;
  for (const std::string& reason : search.refused)
    found = found || reason.find("6 ranks cannot be divided into groups of 4") != std::string::npos;
  EXPECT_TRUE(found);
}

}  // namespace
}  // namespace conclave
