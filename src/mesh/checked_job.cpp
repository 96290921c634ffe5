#include "mesh/checked_job.h"

#include "base/cuda_rules.h"
#include "base/error.h"
#include "config/job_check.h"
#include "config/mixtral_parameters.h"

namespace conclave {
namespace {

void check_reshard_rule(const Job& job, const ModelConfig& model) {
  std::vector<std::string> units;
  for (const UnitDeclaration& unit : declare_mixtral(model)) units.push_back(unit.name);
  // The head goes forward and backward at once; the embedding's backward needs no weights, but a tied head does.
  std::vector<std::string> used_once = {units.back()};
  if (!model.tie_word_embeddings) used_once.push_back(units.front());
  const ReshardRule& rule = job.parallel.reshard_after_forward;
  if (const auto found = mistake_in(rule, units, used_once))
    refuse_if_any({mistake(fmt::format("parallel.reshard_after_forward is {}, but {}.", rule.text(), found->problem),
                           found->remedy, job.origins.of("parallel.reshard_after_forward"))});
}

// What the products' scales and libraries want: whole blocks.
void check_fp8_sizes(const Job& job, const ModelConfig& model) {
  if (job.precision.experts != ExpertPrecision::fp8) return;
  for (const auto& [name, size] :
       {std::pair("hidden_size", model.hidden_size), std::pair("intermediate_size", model.intermediate_size)})
    if (size % fp8_block != 0)
      refuse_if_any({mistake(
          fmt::format("precision.experts is fp8, but the model's {} is {}, and fp8 has a scale for each {} elements.",
                      name, size, fp8_block),
          fmt::format("Set precision.experts to compute, or take a model whose {} is a multiple of {}.", name,
                      fp8_block),
          job.origins.of("precision.experts"))});
}

// The largest micro-batch of at most the job's whose micro-steps fit into a step; the job's own where none does.
int64_t fitting_micro_batch(const Job& job, int world_size) {
  for (int64_t size = job.data.micro_batch_size; size >= 1; --size)
    if (*job.data.global_batch_size % (size * world_size) == 0) return size;
  return job.data.micro_batch_size;
}

// Returns what it changed, in words.
std::vector<std::string> fit_to_world(Job& job, int world_size, int64_t num_experts) {
  const ParallelConfig asked = job.parallel;
  const int64_t asked_micro_batch = job.data.micro_batch_size;
  job.parallel = fitting_degrees(asked, world_size, num_experts);
  job.data.micro_batch_size = fitting_micro_batch(job, world_size);
  std::vector<std::string> changes;
  const auto tell = [&](const char* key, int64_t was, int64_t is) {
    if (was != is)
      changes.push_back(fmt::format("parallel.elastic: {} is {} on {} ranks instead of {}", key, is, world_size, was));
  };
  tell("parallel.expert_parallel_degree", asked.expert_parallel_degree, job.parallel.expert_parallel_degree);
  tell("parallel.hybrid_shard_degree", asked.hybrid_shard_degree, job.parallel.hybrid_shard_degree);
  tell("data.micro_batch_size", asked_micro_batch, job.data.micro_batch_size);
  return changes;
}

}  // namespace

int64_t dispatch_chunks(const CheckedJob& job, int64_t ranks_per_host) {
  if (job.job.moe.dispatch_chunks) return *job.job.moe.dispatch_chunks;
  const bool spans_hosts = ranks_per_host % job.layout.degree(Axis::expert) != 0;
  return spans_hosts && job.job.moe.overload == OverloadPolicy::none ? 2 : 1;
}

CheckedJob check_job(Job job, int world_size) {
  const ModelConfig model = read_model_config(job.model.config);
  return check_job(std::move(job), model, world_size);
}

CheckedJob check_job(Job job, const ModelConfig& model, int world_size) {
  std::vector<std::string> fitted;
  if (job.parallel.elastic) fitted = fit_to_world(job, world_size, model.num_local_experts);
  Layout layout(world_size, job.parallel, model.num_local_experts, job.origins);
  const int64_t micro_steps = micro_steps_per_step(job, world_size);
  if (job.data.sequence_length > model.max_position_embeddings)
    user_error("data.sequence_length is {}, but the model ends at max_position_embeddings {} ({}). Use at most {}.",
               job.data.sequence_length, model.max_position_embeddings, job.model.config.string(),
               model.max_position_embeddings);
  check_reshard_rule(job, model);
  check_fp8_sizes(job, model);
  return {std::move(job), model, layout, micro_steps, std::move(fitted)};
}

}  // namespace conclave
