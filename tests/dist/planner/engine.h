// One rank of the engine as a layout makes it, for holding the planner's predictions against what it does.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "device/device.h"
#include "model/parameters.h"
#include "planner/paper_step.h"
#include "step/forward_backward.h"

namespace conclave::testing {

// That a run's ranks reduce at the end of a step (step/step_exchange.h), counted by hand.
inline constexpr int64_t numbers_of_step_exchange = 12;

struct Case {
  std::string name;
  int world = 1, rank = 0;
  int64_t shard = 1, expert = 1;  // shard: of dense parameters, a multiple of expert
  ActivationCheckpointing checkpointing = ActivationCheckpointing::none;
  int64_t prefetch_units = 1;
  std::string reshard_after_forward = "true";
  bool offloading = false;
  bool tied = false;
  at::ScalarType compute = at::kFloat, reduce = at::kFloat;
  int64_t micro_steps = 1;
  int64_t sequences = 2;
  MoeConfig moe = {};
  std::set<std::string> frozen = {};
  std::optional<AdapterShape> adapter = {};

  bool in_bf16() const { return compute == at::kBFloat16; }
};
inline void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

// The embedding and the first layer, of the second one half of its experts, of the third the router.
inline std::set<std::string> lower_part() {
  std::set<std::string> names = {"embed_tokens", "layers.1.experts.down", "layers.1.input_norm", "layers.2.router"};
  for (const char* part : {"input_norm", "attention.qkv", "attention.output", "post_attention_norm", "router",
                           "experts.gate_up", "experts.down"})
    names.insert(std::string("layers.0.") + part);
  return names;
}

// Experts that are chosen, lent or reached in other ways than usual: both what they need and what they send is planned.
inline std::vector<Case> cases_of_routing() {
  using enum ActivationCheckpointing;
  return {
      {.name = "sinkhorn",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 2,
       .moe = {.moe_load_balancing = LoadBalancing::sinkhorn, .sinkhorn_tolerance = 1e-12, .sinkhorn_iterations = 3}},
      {.name = "balanced",
       .world = 4,
       .rank = 3,
       .shard = 4,
       .expert = 4,
       .checkpointing = selective,
       .moe = {.moe_load_balancing = LoadBalancing::balanced}},
      {.name = "bias", .world = 2, .rank = 1, .shard = 2, .moe = {.moe_load_balancing = LoadBalancing::bias}},
      {.name = "jitter", .checkpointing = full, .moe = {.router_jitter_noise = 0.1}},
      {.name = "many_micro_steps", .world = 4, .rank = 1, .shard = 2, .expert = 2, .micro_steps = 5},
      {.name = "gathering",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 4,
       .checkpointing = full,
       .moe = {.dispatcher = DispatcherKind::all_gather}},
      {.name = "frozen", .world = 4, .rank = 1, .shard = 4, .expert = 2, .frozen = lower_part()},
      {.name = "frozen_offloading",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 2,
       .checkpointing = full,
       .offloading = true,
       .frozen = lower_part()},
      {.name = "lent_experts_half_frozen",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 4,
       .moe = {.overload = OverloadPolicy::spill, .spill_threshold = 1.01, .spill_least_rows = 1},
       .frozen = lower_part()},
      {.name = "adapter",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 2,
       .checkpointing = selective,
       .adapter = AdapterShape{.rank = 8, .targets = {"attention.qkv.q", "attention.output"}, .experts = true}},
      {.name = "adapter_with_dropout",
       .world = 2,
       .rank = 1,
       .shard = 2,
       .checkpointing = full,
       .adapter = AdapterShape{.rank = 8, .dropout = 0.1, .targets = {"attention.qkv.v", "attention.output"}}},
      {.name = "lent_experts_with_adapters",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 4,
       .moe = {.overload = OverloadPolicy::spill, .spill_threshold = 1.01, .spill_least_rows = 1},
       .adapter = AdapterShape{.rank = 8, .targets = {}, .experts = true, .router = true}},
      {.name = "lent_experts",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 4,
       .checkpointing = selective,
       .moe = {.overload = OverloadPolicy::spill, .spill_threshold = 1.01, .spill_least_rows = 1}},
  };
}

inline CheckedJob check(const Case& c, ModelConfig model, int64_t sequence, int64_t loss_chunk_tokens) {
  model.tie_word_embeddings = c.tied;
  model.frozen = c.frozen;
  if (c.adapter)
    for (const UnitDeclaration& unit : declare_model(model))
      for (const ParameterDeclaration& parameter : unit.parameters) model.frozen.insert(parameter.name);
  model.adapter = c.adapter;
  Job job;
  job.data.sequence_length = sequence;
  job.data.micro_batch_size = c.sequences;
  job.data.global_batch_size = c.sequences * c.world * c.micro_steps;
  check_invariant(c.shard % c.expert == 0, "the experts of {} lie within a shard group", c.name);
  job.parallel.hybrid_shard_degree = c.shard / c.expert;
  job.parallel.expert_parallel_degree = c.expert;
  job.parallel.prefetch_units = c.prefetch_units;
  job.parallel.reshard_after_forward =
      ReshardRule::parse(c.reshard_after_forward).value_or(ReshardRule(c.reshard_after_forward == "true"));
  job.moe = c.moe;
  if (!job.moe.overload) job.moe.overload = OverloadPolicy::none;  // as on hosts where lending does not pay
  job.memory.activation_offloading = c.offloading;
  job.memory.offload_folder = std::filesystem::temp_directory_path();
  job.memory.activation_checkpointing = c.checkpointing;
  job.memory.loss_chunk_tokens = loss_chunk_tokens;
  job.checkpoint.every_minutes = 0;  // nothing is saved here
  job.precision.compute = c.in_bf16() ? Precision::bf16 : Precision::fp32;
  job.precision.reduce = c.reduce == at::kBFloat16 ? Precision::bf16 : Precision::fp32;
  return check_job(std::move(job), model, c.world);
}

// Tokens that depend on the rank alone.
inline MicroBatch batch_of(const CheckedJob& job, int rank) {
  at::Generator generator = at::detail::createCPUGenerator(77 + static_cast<uint64_t>(rank));
  const int64_t batch = job.job.data.micro_batch_size, sequence = job.job.data.sequence_length;
  const auto tokens = [&] { return at::randint(job.model.vocab_size, {batch * sequence}, generator, at::kLong); };
  std::vector<int64_t> samples(static_cast<size_t>(batch));
  std::iota(samples.begin(), samples.end(), rank * batch);
  return {tokens(), tokens(), batch, sequence, samples, {}};
}

struct EngineRank {
  EngineRank(const Case& c, const CheckedJob& job, const Axes& axes)
      : settings(step_settings(job, c.compute, at::kCPU)), model(job.model, axes, settings.parameters) {
    settings.aux_coefficient = 0.01;
    settings.z_coefficient = 0.001;
    model.allocate_parameters();
    model.allocate_training_state();
    model.initialize(3);
    forward_backward.emplace(model, settings);
  }
  StepSettings settings;
  ParallelModel model;
  std::optional<ForwardBackward> forward_backward;
};

// What the router chose, by layer and global expert, of each rank of one expert group.
using ChoicesByRank = std::vector<at::Tensor>;  // double [layers, experts]

inline std::vector<int64_t> row_of(const at::Tensor& count_E) {
  const at::Tensor rows = count_E.to(at::kLong).contiguous();
  return {rows.const_data_ptr<int64_t>(), rows.const_data_ptr<int64_t>() + rows.numel()};
}

inline std::shared_ptr<const AssumedChoices> routing_of(const ChoicesByRank& choices) {
  std::vector<RowsBySource> layers;
  for (int64_t layer = 0; layer < choices[0].size(0); ++layer) {
    RowsBySource& rows = layers.emplace_back();
    for (const at::Tensor& of_rank : choices) rows.push_back(row_of(of_rank[layer]));
  }
  return std::make_shared<CountedRouting>(std::move(layers));
}

// What a rank whose world is played by FakeCommunicator meets. Gathered counts are its own, again and again; by
// all-to-all it gets the counts it sent: what it sends to rank p for that rank's expert l comes back from p for its own
// expert l. What others send to others is then nobody's business.
inline std::shared_ptr<const AssumedChoices> routing_of_fake_rank(const Case& c, const at::Tensor& choices_LE) {
  const int64_t degree = c.expert, index = c.rank % c.expert, local = choices_LE.size(1) / degree;
  const bool gathers = c.moe.dispatcher == DispatcherKind::all_gather || c.moe.overload == OverloadPolicy::spill;
  std::vector<RowsBySource> layers;
  for (int64_t layer = 0; layer < choices_LE.size(0); ++layer) {
    const std::vector<int64_t> own = row_of(choices_LE[layer]);
    RowsBySource& rows = layers.emplace_back(RowsBySource(degree, gathers ? own : std::vector<int64_t>(own.size())));
    for (int64_t source = 0; source < degree && !gathers; ++source)
      for (int64_t expert = 0; expert < local; ++expert)
        rows[source][index * local + expert] = own[source * local + expert];
    rows[index] = own;
  }
  return std::make_shared<CountedRouting>(std::move(layers));
}

// `kind` of device; `by_gloo`: other ranks are really there.
inline PlannedRank plan_of(const Case& c, const CheckedJob& job, at::DeviceType kind, bool by_gloo,
                           std::shared_ptr<const AssumedChoices> routing) {
  DeviceDescription device = read_device("cpu");
  device.device.kind = kind;
  PlannedRank planned = plan_rank(job, c.rank, device, std::move(routing));
  planned.stages_sums = by_gloo;
  planned.threads = at::get_num_threads();
  return planned;
}

}  // namespace conclave::testing
