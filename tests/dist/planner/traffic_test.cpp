// Collectives and bytes of a step: the planner's against those that the engine's communicators counted. Exact, no
// tolerance. One rank of a world of 4 or 64 counts by itself (FakeCommunicator); two ranks over Gloo count in earnest.
#include <ATen/ATen.h>

#include "comm/counting_communicator.h"
#include "dist/planner/engine.h"
#include "dist/world.h"
#include "fake_communicator.h"
#include "mixtral_shape.h"
#include "optim/optimizer.h"

namespace conclave {
namespace {

using testing::batch_of;
using testing::Case;
using testing::EngineRank;
using testing::plan_of;
using testing::routing_of;
using testing::routing_of_fake_rank;
using testing::run_ranks;

// Odd on purpose: no size is a multiple of what it is padded to. The embedding (96 KB of fp32) is all-reduced in parts,
// the rest in one go.
CheckedJob small_job(const Case& c) {
  MixtralShape model;
  model.vocab_size = 1003;
  model.hidden_size = 24;
  model.intermediate_size = 20;
  model.num_hidden_layers = 3;
  model.num_attention_heads = 3;
  model.num_key_value_heads = 1;
  model.head_dim = 8;
  model.num_local_experts = 8;
  model.num_experts_per_tok = 2;
  model.initializer_range = 0.5;  // large, so that routing is not nearly even
  return testing::check(c, model, /*sequence=*/12, /*loss_chunk_tokens=*/10);
}

void expect_equal(const TrafficByOperation& actual, const TrafficByOperation& expected) {
  for (const auto& [key, traffic] : expected) {
    const auto found = actual.find(key);
    const Traffic counted = found == actual.end() ? Traffic{} : found->second;
    EXPECT_EQ(counted.calls, traffic.calls) << "calls of " << key.second << " over " << key.first;
    EXPECT_EQ(counted.bytes, traffic.bytes) << "bytes of " << key.second << " over " << key.first;
  }
  for (const auto& [key, traffic] : actual)
    EXPECT_TRUE(expected.count(key)) << key.second << " over " << key.first << ": " << traffic.calls
                                     << " calls, not expected";
}

void add(TrafficByOperation& sum, const TrafficByOperation& counts) {
  for (const auto& [key, traffic] : counts) {
    sum[key].calls += traffic.calls;
    sum[key].bytes += traffic.bytes;
  }
}

class FakeWorld : public ::testing::TestWithParam<Case> {};

std::vector<Case> cases() {
  using enum ActivationCheckpointing;
  std::vector<Case> cases = {
      {.name = "shard4", .world = 4, .rank = 0, .shard = 4, .expert = 1},
      {.name = "shard4_last_rank", .world = 4, .rank = 3, .shard = 4, .expert = 1, .micro_steps = 2},
      {.name = "shard4_expert2", .world = 4, .rank = 1, .shard = 4, .expert = 2, .micro_steps = 3},
      {.name = "shard2_expert2", .world = 4, .rank = 2, .shard = 2, .expert = 2, .micro_steps = 2},
      {.name = "expert4_two_replicas", .world = 8, .rank = 3, .shard = 4, .expert = 4, .micro_steps = 2},
      {.name = "shard1_expert1", .world = 4, .rank = 2, .shard = 1, .expert = 1, .micro_steps = 2},
      {.name = "selective", .world = 4, .rank = 0, .shard = 4, .expert = 2, .checkpointing = selective},
      {.name = "full", .world = 4, .rank = 0, .shard = 4, .expert = 2, .checkpointing = full},
      {.name = "prefetch0", .world = 4, .rank = 0, .shard = 4, .expert = 2, .prefetch_units = 0},
      {.name = "prefetch2", .world = 4, .rank = 0, .shard = 4, .expert = 2, .prefetch_units = 2},
      {.name = "prefetch4", .world = 4, .rank = 0, .shard = 4, .expert = 2, .prefetch_units = 4},
      {.name = "prefetch100", .world = 4, .rank = 0, .shard = 4, .expert = 2, .prefetch_units = 100, .micro_steps = 2},
      {.name = "kept_from_forward",
       .world = 4,
       .rank = 0,
       .shard = 4,
       .expert = 2,
       .reshard_after_forward = "false",
       .micro_steps = 2},
      {.name = "two_layers_kept",
       .world = 4,
       .rank = 2,
       .shard = 4,
       .expert = 2,
       .reshard_after_forward = "all but layers.0, layers.2",
       .micro_steps = 2},
      {.name = "tied_embedding_kept",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 1,
       .reshard_after_forward = "all but embedding, layers.1-2",
       .tied = true},
      {.name = "offloading", .world = 4, .rank = 1, .shard = 4, .expert = 2, .checkpointing = full, .offloading = true},
      {.name = "tied", .world = 4, .rank = 1, .shard = 4, .expert = 2, .tied = true, .micro_steps = 2},
      {.name = "tied_prefetch3", .world = 8, .rank = 1, .shard = 4, .expert = 4, .prefetch_units = 3, .tied = true},
      {.name = "tied_kept",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 1,
       .reshard_after_forward = "false",
       .tied = true},
      {.name = "bf16",
       .world = 4,
       .rank = 1,
       .shard = 2,
       .expert = 2,
       .compute = at::kBFloat16,
       .reduce = at::kBFloat16,
       .micro_steps = 2},
      {.name = "two_parts",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 2,
       .micro_steps = 2,
       .moe = {.dispatch_chunks = 2}},
      {.name = "three_parts_full",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 4,
       .checkpointing = full,
       .moe = {.dispatch_chunks = 3}},
      {.name = "capacity", .world = 4, .rank = 1, .shard = 4, .expert = 2, .moe = {.capacity_factor = 100}},
      {.name = "capacity_by_position_alone",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .moe = {.capacity_factor = 100, .drop_policy = DropPolicy::position}},
      {.name = "chunk",
       .world = 4,
       .rank = 2,
       .shard = 4,
       .expert = 4,
       .checkpointing = full,
       .moe = {.overload = OverloadPolicy::chunk, .max_tokens_per_rank_factor = 4}},
      {.name = "world64", .world = 64, .rank = 5, .shard = 64, .expert = 8, .micro_steps = 2},
      {.name = "world64_hybrid", .world = 64, .rank = 63, .shard = 16, .expert = 8, .micro_steps = 2},
      {.name = "world64_hybrid_full", .world = 64, .rank = 17, .shard = 8, .expert = 4, .checkpointing = full},
      {.name = "world64_experts_unsharded", .world = 64, .rank = 40, .shard = 8, .expert = 8, .micro_steps = 2},
      {.name = "world64_replicated", .world = 64, .rank = 33, .shard = 1, .expert = 1},
  };
  for (const Case& c : testing::cases_of_routing()) cases.push_back(c);
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Traffic, FakeWorld, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

Axes fake_axes(const Case& c, const Layout& layout, const std::shared_ptr<TrafficCount>& count) {
  return Axes(layout, c.rank, [&](const AxisGroup& group, const std::string& axis) {
    return std::make_unique<CountingCommunicator>(std::make_unique<FakeCommunicator>(axis, group.index, group.size()),
                                                  count);
  });
}

// A step: its micro-steps (of which only the last one's gradients go over the replicas), the sum of the loss, the norm,
// what ranks tell each other at its end; and, apart from it, an evaluation.
TEST_P(FakeWorld, sends_what_was_planned) {
  const Case& c = GetParam();
  const auto count = std::make_shared<TrafficCount>();
  const CheckedJob job = small_job(c);
  const Axes axes = fake_axes(c, job.layout, count);
  EngineRank engine(c, job, axes);
  const MicroBatch batch = batch_of(job, c.rank);
  EXPECT_TRUE(count->reset().empty()) << "setting up sends nothing";
  at::Tensor choices_LE;
  for (int64_t m = 0; m < c.micro_steps; ++m) {
    const bool last = m == c.micro_steps - 1;
    choices_LE = engine.forward_backward->train(batch, {m == 0, last, 0.01, 1.0}).balance.count_LE;
  }
  axes.world().all_reduce(at::zeros({1}, at::kDouble)).wait();  // TrainStep's sum of the loss
  axes.world().all_reduce(at::zeros({testing::numbers_of_step_exchange}, at::kDouble)).wait();
  Optimizer optimizer(make_optimizer_rule({}), 1.0, engine.model.optimizer_units());
  TrafficByOperation of_step = count->reset();
  optimizer.gradient_squares(axes.world(), at::kCPU);
  const TrafficByOperation of_norm = count->reset();
  expect_equal(of_norm, {{{"world", "all_reduce"}, {1, (c.world - 1) * 5 * 8}}});  // one double for each unit
  add(of_step, of_norm);
  const PlannedRank planned = plan_of(c, job, at::kCPU, false, routing_of_fake_rank(c, choices_LE));
  expect_equal(of_step, plan_step(planned).traffic);

  optimizer.update(0.0, 1, 1.0);
  EXPECT_TRUE(count->reset().empty()) << "the update sends nothing";
  // Sinkhorn and balanced choices are training's alone, so an evaluation routes anew.
  const at::Tensor evaluated_LE = engine.forward_backward->evaluate(batch).balance.count_LE;
  const PlannedRank evaluated = plan_of(c, job, at::kCPU, false, routing_of_fake_rank(c, evaluated_LE));
  expect_equal(count->reset(), plan_evaluation(evaluated).traffic);
}

// Choices of one rank's tokens, by a model that is whole on this rank: initial values do not depend on the layout.
at::Tensor choices_alone(const Case& c, const CheckedJob& job, int rank) {
  Case alone = c;
  alone.world = 1;
  alone.rank = 0;
  alone.shard = alone.expert = alone.micro_steps = 1;
  const CheckedJob job_alone = small_job(alone);
  const Axes axes = fake_axes(alone, job_alone.layout, std::make_shared<TrafficCount>());
  EngineRank engine(alone, job_alone, axes);
  return engine.forward_backward->evaluate(batch_of(job, rank)).balance.count_LE;
}

TEST(GlooTraffic, two_ranks_send_what_was_planned) {
  run_ranks(2, [](World& world) {
    using enum ActivationCheckpointing;
    for (Case c :
         {Case{.name = "shard2_expert2", .world = 2, .shard = 2, .expert = 2, .micro_steps = 2},
          Case{.name = "shard2_expert1", .world = 2, .shard = 2, .expert = 1, .micro_steps = 2},
          Case{.name = "selective", .world = 2, .shard = 2, .expert = 2, .checkpointing = selective},
          Case{.name = "full", .world = 2, .shard = 2, .expert = 2, .checkpointing = full, .prefetch_units = 2},
          Case{.name = "all_gather",
          .world = 2,
          .shard = 2,
          .expert = 2,
          .moe = {.dispatcher = DispatcherKind::all_gather}},
          Case{.name = "all_gather_full_in_three_parts",
          .world = 2,
          .shard = 2,
          .expert = 2,
          .checkpointing = full,
          .moe = {.dispatcher = DispatcherKind::all_gather, .dispatch_chunks = 3}},
          Case{.name = "spill", .world = 2, .shard = 2, .expert = 2, .moe = {.overload = OverloadPolicy::spill}},
          Case{.name = "three_parts", .world = 2, .shard = 2, .expert = 2, .moe = {.dispatch_chunks = 3}}}) {
      SCOPED_TRACE(c.name);
      c.rank = world.rank();
      const auto count = std::make_shared<TrafficCount>();
      const CheckedJob job = small_job(c);
      const Axes axes(job.layout, c.rank, [&](const AxisGroup& group, const std::string& axis) {
        return std::make_unique<CountingCommunicator>(world.communicator(group, axis), count);
      });
      EngineRank engine(c, job, axes);
      testing::ChoicesByRank choices;
      const int first = c.expert == 2 ? 0 : c.rank;
      for (int64_t place = 0; place < c.expert; ++place)
        choices.push_back(choices_alone(c, job, first + static_cast<int>(place)));
      const PlannedRank planned = plan_of(c, job, at::kCPU, true, routing_of(choices));
      EXPECT_TRUE(count->reset().empty()) << "setting up sends nothing";
      for (int64_t m = 0; m < c.micro_steps; ++m) {
        const bool last = m == c.micro_steps - 1;
        engine.forward_backward->train(batch_of(job, c.rank), {m == 0, last, 0.01, 1.0});
      }
      axes.world().all_reduce(at::zeros({1}, at::kDouble)).wait();
      axes.world().all_reduce(at::zeros({testing::numbers_of_step_exchange}, at::kDouble)).wait();
      Optimizer(make_optimizer_rule({}), 1.0, engine.model.optimizer_units()).gradient_squares(axes.world(), at::kCPU);
      const TrafficByOperation of_step = count->reset();
      expect_equal(of_step, plan_step(planned).traffic);
      if (c.expert > 1) {
        const bool gathers = c.moe.dispatcher == DispatcherKind::all_gather;
        EXPECT_GT(of_step.at({"expert", gathers ? "all_gather" : "all_to_all"}).bytes, 10'000) << "of rows";
      }
      EXPECT_TRUE(std::isfinite(engine.forward_backward->evaluate(batch_of(job, c.rank)).loss_sum));
      expect_equal(count->reset(), plan_evaluation(planned).traffic);
    }
  });
}

}  // namespace
}  // namespace conclave
