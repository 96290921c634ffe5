// The memory of a step: the planner's ledger against what the engine's allocations counted, category by category and in
// total. Tolerance 2 %, and 64 KiB for what grows with nothing (a few vectors of sums, alignment). Balance of the
// experts is not the planner's to know: the rows that the router really chose are put into the plan.
#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>
#include <ATen/cpu/Utils.h>

#include "dist/planner/measured_memory.h"
#include "dist/world.h"
#include "fake_communicator.h"
#include "mixtral_shape.h"

namespace conclave {
namespace {

using testing::batch_of;
using testing::Case;
using testing::EngineRank;
using testing::expect_near;
using testing::expect_planned;
using testing::measure;
using testing::Measured;
using testing::plan_of;
using testing::routing_of_fake_rank;
using testing::run_ranks;

// Large enough that every category counts in megabytes, small enough for a fraction of a second.
CheckedJob job_of(const Case& c) {
  MixtralShape model;
  model.vocab_size = 4000;
  model.hidden_size = 256;
  model.intermediate_size = 512;
  model.num_hidden_layers = 4;
  model.num_attention_heads = 8;
  model.num_key_value_heads = 2;
  model.head_dim = 32;
  model.num_local_experts = 8;
  model.num_experts_per_tok = 2;
  return testing::check(c, model, /*sequence=*/256, /*loss_chunk_tokens=*/200);
}

bool has_bf16() {
  const auto capabilities = at::cpu::get_cpu_capabilities();
  const auto found = capabilities.find("avx512_bf16");
  return found != capabilities.end() && found->second.toBool();
}

class PlannedMemoryOf : public ::testing::TestWithParam<Case> {};

// One rank of a world, the others played by the fake communicator.
std::vector<Case> cases() {
  using enum ActivationCheckpointing;
  std::vector<Case> cases = {
      {.name = "alone"},
      {.name = "alone_bf16", .compute = at::kBFloat16},
      {.name = "shard4", .world = 4, .rank = 1, .shard = 4},
      {.name = "shard4_expert2_selective", .world = 4, .rank = 3, .shard = 4, .expert = 2, .checkpointing = selective},
      {.name = "shard4_expert2_full", .world = 4, .rank = 0, .shard = 4, .expert = 2, .checkpointing = full},
      {.name = "expert4_full", .world = 8, .rank = 2, .shard = 4, .expert = 4, .checkpointing = full},
      {.name = "two_replicas_expert2",
       .world = 4,
       .rank = 1,
       .shard = 2,
       .expert = 2,
       .checkpointing = full,
       .micro_steps = 2},
      {.name = "prefetch0", .world = 8, .rank = 1, .shard = 8, .expert = 2, .checkpointing = full, .prefetch_units = 0},
      {.name = "prefetch3", .world = 8, .rank = 1, .shard = 8, .expert = 2, .checkpointing = full, .prefetch_units = 3},
      {.name = "kept_gathered",
       .world = 8,
       .rank = 5,
       .shard = 8,
       .expert = 2,
       .checkpointing = full,
       .reshard_after_forward = "false"},
      {.name = "one_layer_kept_gathered",
       .world = 8,
       .rank = 5,
       .shard = 8,
       .checkpointing = full,
       .reshard_after_forward = "all but layers.1"},
      {.name = "offloading_full",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 2,
       .checkpointing = full,
       .offloading = true},
      {.name = "offloading_selective",
       .world = 4,
       .rank = 2,
       .shard = 4,
       .expert = 2,
       .checkpointing = selective,
       .offloading = true,
       .sequences = 4},
      {.name = "tied", .world = 4, .rank = 1, .shard = 4, .expert = 2, .checkpointing = full, .tied = true},
      {.name = "micro_steps",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 2,
       .checkpointing = selective,
       .micro_steps = 2},
      {.name = "larger_micro_batch", .world = 4, .rank = 1, .shard = 4, .expert = 4, .sequences = 4},
      {.name = "bf16_full",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 2,
       .checkpointing = full,
       .compute = at::kBFloat16},
      {.name = "bf16_reduced_in_bf16",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 2,
       .checkpointing = selective,
       .compute = at::kBFloat16,
       .reduce = at::kBFloat16,
       .micro_steps = 2},
      {.name = "two_parts", .world = 4, .rank = 1, .shard = 4, .expert = 2, .moe = {.dispatch_chunks = 2}},
      {.name = "three_parts_full",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 4,
       .checkpointing = full,
       .sequences = 4,
       .moe = {.dispatch_chunks = 3}},
      {.name = "capacity_selective",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 2,
       .checkpointing = selective,
       .moe = {.capacity_factor = 100}},
      {.name = "world64", .world = 64, .rank = 63, .shard = 32, .expert = 2, .checkpointing = full},
      {.name = "world64_expert8", .world = 64, .rank = 17, .shard = 64, .expert = 8},
  };
  for (const Case& c : testing::cases_of_routing()) cases.push_back(c);
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Memory, PlannedMemoryOf, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST_P(PlannedMemoryOf, a_step_is_what_the_engine_allocates) {
  const Case& c = GetParam();
  if (c.in_bf16() && !has_bf16()) GTEST_SKIP() << "this CPU has no AVX512-bf16";
  const CheckedJob job = job_of(c);
  const Axes axes(job.layout, c.rank, [](const AxisGroup& group, const std::string& axis) {
    return std::make_unique<FakeCommunicator>(axis, group.index, group.size());
  });
  const Measured measured = measure(c, job, axes);
  const auto routing = routing_of_fake_rank(c, measured.choices_LE);
  expect_planned(measured.memory, plan_step(plan_of(c, job, at::kCPU, false, routing)).memory);
}

// Validation between the steps needs no more than the step.
TEST_P(PlannedMemoryOf, an_evaluation_stays_below_the_step) {
  const Case& c = GetParam();
  if (c.in_bf16() && !has_bf16()) GTEST_SKIP() << "this CPU has no AVX512-bf16";
  const CheckedJob job = job_of(c);
  const Axes axes(job.layout, c.rank, [](const AxisGroup& group, const std::string& axis) {
    return std::make_unique<FakeCommunicator>(axis, group.index, group.size());
  });
  EngineRank engine(c, job, axes);
  const MicroBatch batch = batch_of(job, c.rank);
  const MemoryUse before = memory_report().now;
  reset_memory_peaks();
  const at::Tensor choices_LE = engine.forward_backward->evaluate(batch).balance.count_LE;
  const int64_t needed = memory_report().peak_of.total - before.total;
  const PlannedRank rank = plan_of(c, job, at::kCPU, false, routing_of_fake_rank(c, choices_LE));
  const PlannedMemory evaluation = plan_evaluation(rank).memory, step = plan_step(rank).memory;
  const auto state = [](const PlannedMemory& m) {
    return m.peak_of.of[0] + m.peak_of.of[1] + m.peak_of.of[2];  // parameters, moments, gradients
  };
  expect_near("evaluation", needed, evaluation.peak_of.total - state(evaluation));
  EXPECT_LE(evaluation.peak_of.total, step.peak_of.total);
}

// Real ranks: their communicators hold buffers of their own.
TEST(PlannedMemoryOfRanks, a_step_is_what_the_engine_allocates) {
  run_ranks(2, [](World& world) {
    using enum ActivationCheckpointing;
    for (Case c : {Case{.name = "shard2", .world = 2, .shard = 2, .expert = 1, .checkpointing = full},
                   Case{.name = "shard2_expert2", .world = 2, .shard = 2, .expert = 2, .micro_steps = 2},
                   Case{.name = "expert2_selective", .world = 2, .shard = 2, .expert = 2, .checkpointing = selective},
                   Case{.name = "all_gather",
                   .world = 2,
                   .shard = 2,
                   .expert = 2,
                   .moe = {.dispatcher = DispatcherKind::all_gather}},
                   Case{.name = "all_gather_full",
                   .world = 2,
                   .shard = 2,
                   .expert = 2,
                   .checkpointing = full,
                   .moe = {.dispatcher = DispatcherKind::all_gather}},
                   Case{.name = "shuffle",
                   .world = 2,
                   .shard = 2,
                   .expert = 2,
                   .checkpointing = full,
                   .sequences = 4,
                   .moe = {.global_token_shuffle = true}}}) {
      SCOPED_TRACE(c.name);
      c.rank = world.rank();
      const CheckedJob job = job_of(c);
      const Axes axes(job.layout, c.rank,
                      [&](const AxisGroup& group, const std::string& axis) { return world.communicator(group, axis); });
      testing::ChoicesByRank choices;
      for (int64_t place = 0; place < c.expert; ++place) {
        Case alone{.name = "alone"};
        const CheckedJob job_alone = job_of(alone);
        const Axes own(job_alone.layout, 0, [](const AxisGroup& group, const std::string& axis) {
          return std::make_unique<FakeCommunicator>(axis, group.index, group.size());
        });
        EngineRank engine(alone, job_alone, own);
        const int rank = c.expert == 2 ? static_cast<int>(place) : c.rank;
        choices.push_back(engine.forward_backward->evaluate(batch_of(job, rank)).balance.count_LE);
      }
      const Measured measured = measure(c, job, axes);
      expect_planned(measured.memory, plan_step(plan_of(c, job, at::kCPU, true, testing::routing_of(choices))).memory);
    }
  });
}

}  // namespace
}  // namespace conclave
