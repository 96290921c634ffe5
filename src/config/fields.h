// The one description of the job file: every section and key with its member, its rule and its meaning. Parsing, help,
// printing and validation are visitors of it. A key's default is what a default-constructed Job holds.
//
// A visitor has `section(name, help)` and the template `field(key, value, rule, help)`, with key = "section.key".
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "config/job.h"

namespace conclave {

// Any value of its type.
struct Anything {};

// Text that is not empty.
struct NotEmpty {};

// One of some words, or a path.
struct WordOrPath {};

// A path without a default, needed by `who`. An empty path is one that was not given.
struct RequiredPath {
  const char* who;
  bool always;  // needed by whatever reads a job file, not by some commands only
};

// A number from `least` to `most`.
struct NumberRange {
  double least;
  double most = std::numeric_limits<double>::infinity();
  bool without_least = false;
  bool without_most = false;
};
inline NumberRange at_least(double least) {
  return {least};
}
inline NumberRange more_than(double least) {
  return {.least = least, .without_least = true};
}
// Products of two sizes cannot overflow.
constexpr double largest_size = std::numeric_limits<int32_t>::max();
inline NumberRange size_of_at_least(double least) {
  return {least, largest_size};
}
// Of steps, and of what is kept or done once in some steps: a billion is more than any run has.
inline NumberRange count_from(double least) {
  return {least, 1e9};
}
constexpr double largest_world = 1 << 20;
constexpr double most_layers = 10'000;
inline NumberRange from_to_below(double least, double most) {
  return {.least = least, .most = most, .without_most = true};
}

// One word of several. `later`: words that are known, but not supported in this version.
template <class Enum>
struct Choices {
  std::vector<std::pair<std::string, Enum>> words;
  std::vector<std::string> later;
};

// A key whose other values are known, but not supported in this version, and why.
struct Only {
  const char* value;  // as printed
  const char* reason;
};

// `AnyJob`: Job or const Job.
template <class AnyJob, class Visitor>
void describe(AnyJob& job, Visitor&& visitor) {
  visitor.section("run", "what the job is called, how long it runs, where its output goes");
  visitor.field("run.name", job.run.name, NotEmpty{}, "the name in messages and in TensorBoard");
  visitor.field("run.output_dir", job.run.output_dir, RequiredPath{"every job", true},
                "the folder of the resolved job, metrics, checkpoints and exports");
  visitor.field("run.steps", job.run.steps, count_from(1), "optimizer steps of the whole job");
  visitor.field("run.seed", job.run.seed, at_least(0),
                "initial weights and the order of the data follow from it alone");
  visitor.field("run.device", job.run.device,
                Choices<WantedDevice>{
                    {{"auto", WantedDevice::automatic}, {"cpu", WantedDevice::cpu}, {"cuda", WantedDevice::cuda}}, {}},
                "auto: CUDA where there is one");
  visitor.field("run.deterministic", job.run.deterministic, Only{"true", "every path of it is deterministic"},
                "the same job on the same layout gives the same bits");
  visitor.field("run.timeout_seconds", job.run.timeout_seconds, NumberRange{1, 31'536'000},
                "a collective that takes longer means a lost or hung rank");
  visitor.field(
      "run.stop_after", job.run.stop_after, Anything{},
      "the run ends in time to have saved when its processes are so old, with exit code 6; null: no deadline");

  visitor.section("model", "the model's shape, and its weights if there are any yet");
  visitor.field("model.config", job.model.config, RequiredPath{"every job", true},
                "a Hugging Face config.json of a Mixtral, or its folder");
  visitor.field("model.init_from", job.model.init_from, Anything{},
                "a Hugging Face checkpoint folder to start from; null: random weights");
  visitor.field("model.upcycle_from", job.model.upcycle_from, Anything{},
                "a Hugging Face folder of a dense Mistral or Llama to start from: every expert begins as its MLP");
  visitor.field("model.upcycle_noise", job.model.upcycle_noise, at_least(0),
                "standard deviation of the noise added to each expert, relative to that of the dense weights");
  visitor.field("model.upcycle_reinit_fraction", job.model.upcycle_reinit_fraction, NumberRange{0, 1},
                "fraction of each expert's intermediate units that is drawn anew (drop-upcycling)");

  visitor.field(
      "model.resize_vocabulary", job.model.resize_vocabulary, size_of_at_least(1),
      "the number of token ids, when init_from or upcycle_from has another: new rows of embedding and head are "
      "drawn around the mean of the old; null: the vocab_size of config");
  visitor.field("model.shrink_vocabulary", job.model.shrink_vocabulary, Anything{},
                "true: resize_vocabulary may be smaller than the source's vocabulary, whose last ids are dropped");

  visitor.section("data", "token files and batch sizes");
  visitor.field("data.train", job.data.train, RequiredPath{"training", false}, "prefix of a .bin/.idx pair");
  visitor.field("data.validation", job.data.validation, Anything{}, "prefix of a .bin/.idx pair; null: none");
  visitor.field("data.sequence_length", job.data.sequence_length, NumberRange{1, 1 << 24}, "tokens of one sample");
  visitor.field("data.micro_batch_size", job.data.micro_batch_size, size_of_at_least(1),
                "sequences per rank and micro-step");
  visitor.field("data.global_batch_size", job.data.global_batch_size, size_of_at_least(1),
                "sequences per step over all ranks; null: micro_batch_size x world size");

  visitor.section("parallel", "the layout of the ranks");
  visitor.field("parallel.expert_parallel_degree", job.parallel.expert_parallel_degree, NumberRange{1, largest_world},
                "ranks that divide the experts among them; divides the model's experts and the world size");
  visitor.field(
      "parallel.hybrid_shard_degree", job.parallel.hybrid_shard_degree, NumberRange{0, largest_world},
      "ranks that divide the same experts, and with the expert axis everything else, among them; 0: all ranks");
  visitor.field(
      "parallel.elastic", job.parallel.elastic, Anything{},
      "true: the degrees are the most; another world size takes the nearest that fit, and micro-steps to suit");
  visitor.field("parallel.prefetch_units", job.parallel.prefetch_units, NumberRange{0, most_layers},
                "units gathered ahead of the one that computes");
  visitor.field("parallel.reshard_after_forward", job.parallel.reshard_after_forward, Anything{},
                "false: gathered parameters stay from forward to backward, half the gathers for more memory; all but "
                "layers.4-7, layers.9: these stay");

  visitor.section("memory", "what is kept, recomputed or moved to the host");
  visitor.field("memory.activation_checkpointing", job.memory.activation_checkpointing,
                Choices<ActivationCheckpointing>{{{"none", ActivationCheckpointing::none},
                                                  {"selective", ActivationCheckpointing::selective},
                                                  {"full", ActivationCheckpointing::full}},
                                                 {}},
                "full: only each layer's input is kept; selective: also routing and all-to-all results");
  visitor.field(
      "memory.activation_offloading", job.memory.activation_offloading, Anything{},
      "kept layer inputs leave the device until shortly before their backward: CUDA to pinned host memory, CPU to "
      "a scratch file; needs activation_checkpointing");
  visitor.field("memory.activation_loading_horizon", job.memory.activation_loading_horizon, NumberRange{1, most_layers},
                "the most layers whose offloaded inputs are on the device at once");
  visitor.field("memory.offload_folder", job.memory.offload_folder, Anything{},
                "where a CPU run puts its scratch files, which vanish with the run; null: run.output_dir");
  visitor.field("memory.loss_chunk_tokens", job.memory.loss_chunk_tokens, size_of_at_least(1),
                "tokens whose logits are alive at once");

  visitor.section("moe", "routing and its losses");
  visitor.field("moe.moe_load_balancing", job.moe.moe_load_balancing,
                Choices<LoadBalancing>{{{"aux_loss", LoadBalancing::aux_loss},
                                        {"none", LoadBalancing::none},
                                        {"sinkhorn", LoadBalancing::sinkhorn},
                                        {"balanced", LoadBalancing::balanced},
                                        {"bias", LoadBalancing::bias}},
                                       {}},
                "how tokens are spread over the experts: aux_loss by a loss; sinkhorn, bias by the choice itself; "
                "balanced: round-robin, for benchmarks; none: not at all");
  visitor.field("moe.moe_aux_loss_coeff", job.moe.moe_aux_loss_coeff, at_least(0),
                "strength of aux_loss; null: the model's own router_aux_loss_coef");
  visitor.field(
      "moe.aux_loss_scope", job.moe.aux_loss_scope,
      Choices<AuxLossTokens>{{{"all_ranks", AuxLossTokens::all_ranks}, {"rank", AuxLossTokens::rank}}, {}},
      "whose tokens of a micro-step aux_loss is taken over; rank: each rank's own, averaged: depends on the layout");
  visitor.field("moe.aux_loss_layers", job.moe.aux_loss_layers,
                Choices<AuxLossRows>{{{"together", AuxLossRows::together}, {"each", AuxLossRows::each}}, {}},
                "together: one product over all layers' tokens, as in Transformers; each: every layer's own, averaged: "
                "evens out each layer; null: together after model.init_from, else each");
  visitor.field("moe.moe_z_loss_coeff", job.moe.moe_z_loss_coeff, at_least(0),
                "strength of the loss that keeps router logits small; 0: none");
  visitor.field("moe.sinkhorn_tolerance", job.moe.sinkhorn_tolerance, more_than(0),
                "sinkhorn ends when every expert's demand is the mean up to this share of it");
  visitor.field("moe.sinkhorn_iterations", job.moe.sinkhorn_iterations, NumberRange{1, 100'000},
                "the most iterations of sinkhorn, each one all-reduce of a few numbers a layer");
  visitor.field("moe.bias_update_rate", job.moe.bias_update_rate, more_than(0),
                "by which a step raises or lowers an expert's selection bias under moe_load_balancing: bias");
  visitor.field("moe.dispatcher", job.moe.dispatcher,
                Choices<DispatcherKind>{
                    {{"all_to_all", DispatcherKind::all_to_all}, {"all_gather", DispatcherKind::all_gather}}, {}},
                "how tokens reach the ranks of their experts; all_gather: every rank gets all tokens of its expert "
                "group, for small groups");
  visitor.field("moe.dispatch_chunks", job.moe.dispatch_chunks, NumberRange{1, 64},
                "the rows of one part of the tokens travel while the experts compute another; null: 2 where an expert "
                "group spans hosts, else 1");
  visitor.field("moe.global_token_shuffle", job.moe.global_token_shuffle, Anything{},
                "tokens change ranks at random within an expert group before they are dispatched, and return after");
  visitor.field("moe.capacity_factor", job.moe.capacity_factor, more_than(0),
                "the most tokens of an expert in a micro-step of training, over the mean; null: no limit, no token is "
                "dropped");
  visitor.field("moe.drop_policy", job.moe.drop_policy,
                Choices<DropPolicy>{{{"probability", DropPolicy::probability}, {"position", DropPolicy::position}}, {}},
                "which tokens a full expert keeps: those of the highest probability or the first; null: probability");
  visitor.field(
      "moe.overload", job.moe.overload,
      Choices<OverloadPolicy>{
          {{"none", OverloadPolicy::none}, {"chunk", OverloadPolicy::chunk}, {"spill", OverloadPolicy::spill}}, {}},
      "what a rank with too many tokens does; chunk: takes them one part after the other; spill: lends "
      "experts to ranks with fewer; null: spill within a host, else none");
  visitor.field("moe.max_tokens_per_rank_factor", job.moe.max_tokens_per_rank_factor, at_least(1),
                "overload: chunk takes at most so many tokens at once, over the mean of the ranks");
  visitor.field(
      "moe.spill_threshold", job.moe.spill_threshold, at_least(1),
      "overload: spill lends experts when the rows of the busiest rank, over the mean of the ranks, are above "
      "this");
  visitor.field("moe.spill_least_rows", job.moe.spill_least_rows, size_of_at_least(1),
                "overload: spill lends an expert for so many of its tokens or more; null: 128 on CPUs, 2048 on GPUs");
  visitor.field("moe.router_jitter_noise", job.moe.router_jitter_noise, from_to_below(0, 1),
                "router inputs are multiplied by 1 +- this in training; null: the model's own");

  visitor.section("precision", "number formats");
  visitor.field(
      "precision.compute", job.precision.compute,
      Choices<Precision>{{{"auto", Precision::automatic}, {"fp32", Precision::fp32}, {"bf16", Precision::bf16}}, {}},
      "auto: bf16 where the hardware has it, else fp32; weights and optimizer state are fp32 in any case");
  visitor.field("precision.reduce", job.precision.reduce,
                Choices<Precision>{{{"fp32", Precision::fp32}, {"bf16", Precision::bf16}}, {}},
                "in what gradients are summed over the ranks");
  visitor.field("precision.experts", job.precision.experts,
                Choices<ExpertPrecision>{{{"compute", ExpertPrecision::compute}, {"fp8", ExpertPrecision::fp8}}, {}},
                "the experts' products; fp8: e4m3, gradients e5m2, with a scale for each block; on H100 and H200, with "
                "precision.compute bf16");
  visitor.field(
      "precision.router", job.precision.router,
      Choices<RouterPrecision>{{{"compute", RouterPrecision::compute}, {"fp32", RouterPrecision::fp32}}, {}},
      "the router's logits and their gradient; compute: as precision.compute, which is what Transformers does");

  visitor.section("optimizer", "AdamW");
  visitor.field("optimizer.lr", job.optimizer.lr, more_than(0), "the highest learning rate");
  visitor.field("optimizer.beta1", job.optimizer.beta1, from_to_below(0, 1), "decay of the mean gradient");
  visitor.field("optimizer.beta2", job.optimizer.beta2, from_to_below(0, 1), "decay of the mean squared gradient");
  visitor.field("optimizer.eps", job.optimizer.eps, more_than(0), "added to the root of the mean squared gradient");
  visitor.field("optimizer.weight_decay", job.optimizer.weight_decay, at_least(0), "of all weights but norms");
  visitor.field("optimizer.grad_clip", job.optimizer.grad_clip, at_least(0),
                "the most the gradient norm may be; 0: any");
  visitor.field("optimizer.max_skipped_steps", job.optimizer.max_skipped_steps, size_of_at_least(0),
                "steps with a non-finite loss or gradient are skipped; the job stops after this many in a row");

  visitor.section("schedule", "the learning rate over the steps");
  visitor.field(
      "schedule.kind", job.schedule.kind,
      Choices<ScheduleKind>{
          {{"cosine", ScheduleKind::cosine}, {"linear", ScheduleKind::linear}, {"constant", ScheduleKind::constant}},
          {}},
      "how the learning rate falls from lr to min_lr after the warm-up");
  visitor.field("schedule.warmup_steps", job.schedule.warmup_steps, count_from(0),
                "steps in which it rises from 0 to lr");
  visitor.field("schedule.min_lr", job.schedule.min_lr, at_least(0), "where it ends; not used by kind constant");

  visitor.section("checkpoint", "states a job can resume from");
  visitor.field("checkpoint.every", job.checkpoint.every, count_from(0), "steps between checkpoints; 0: none by steps");
  visitor.field("checkpoint.every_minutes", job.checkpoint.every_minutes, NumberRange{0, 1e6},
                "minutes between checkpoints; 0: none by time; with every: 0 too, nothing is saved");
  visitor.field("checkpoint.keep", job.checkpoint.keep, count_from(1), "newest checkpoints kept");
  visitor.field("checkpoint.keep_every", job.checkpoint.keep_every, count_from(0),
                "checkpoints of every so many steps are kept for good; 0: none");
  visitor.field("checkpoint.async", job.checkpoint.async, Anything{},
                "true: written from a copy in host memory while the next steps run; false: the step waits");
  visitor.field("checkpoint.resume", job.checkpoint.resume, WordOrPath{},
                "auto: from the newest checkpoint of output_dir, if any; never; or the path of a checkpoint folder");
  visitor.field("checkpoint.verify", job.checkpoint.verify, Anything{},
                "on loading, all data is compared with its hashes");
  visitor.field("checkpoint.on_damage", job.checkpoint.on_damage,
                Choices<OnDamage>{{{"fall_back", OnDamage::fall_back}, {"stop", OnDamage::stop}}, {}},
                "when the newest checkpoint is damaged: go on from the newest that is not, or stop");
  visitor.field("checkpoint.allow_changed", job.checkpoint.allow_changed, Anything{},
                "keys (section.key, with commas between them) whose change does not stop a resumed run; null: none");
  visitor.field("checkpoint.export_every", job.checkpoint.export_every, count_from(0),
                "steps between exports to a Hugging Face folder in output_dir/export; 0: none");
  visitor.field("checkpoint.export_keep", job.checkpoint.export_keep, count_from(0), "newest exports kept; 0: all");

  visitor.section("validation", "loss on the held-back data");
  visitor.field("validation.every", job.validation.every, count_from(0), "steps between validations; 0: none");
  visitor.field("validation.samples", job.validation.samples, count_from(0),
                "samples of one validation: the first of the set, the same on every layout; 0: the whole set");

  visitor.section("metrics", "what is reported");
  visitor.field("metrics.tensorboard", job.metrics.tensorboard, Anything{}, "writes TensorBoard files");
  visitor.field("metrics.log_every", job.metrics.log_every, count_from(1),
                "steps between progress lines; metrics.jsonl has every step");
  visitor.field("metrics.record_routing", job.metrics.record_routing, Anything{},
                "writes the rows of each step, layer, rank and expert to routing.bin, which `plan --routing` replays");
}

}  // namespace conclave
