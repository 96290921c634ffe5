#include "mesh/checked_job.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <limits>

#include "base/cuda_rules.h"
#include "base/error.h"
#include "config/job_check.h"
#include "config/job_difference.h"

namespace conclave {
namespace {

void check_reshard_rule(const Job& job, const ModelConfig& model) {
  const std::vector<std::string> units = unit_names(model);
  // The head goes forward and backward at once; the embedding's backward needs no weights, but a tied head does.
  std::vector<std::string> used_once = {units.back()};
  if (!model.tie_word_embeddings) used_once.push_back(units.front());
  const ReshardRule& rule = job.parallel.reshard_after_forward;
  if (const auto found = mistake_in(rule, units, used_once))
    refuse_if_any({mistake(fmt::format("parallel.reshard_after_forward is {}, but {}.", rule.text(), found->problem),
                           found->remedy, job.origins.of("parallel.reshard_after_forward"))});
}

// Rows are counted in 32 bits.
void check_rows(const Job& job, const ModelConfig& model) {
  constexpr int64_t most_rows = std::numeric_limits<int32_t>::max();
  const int64_t rows_of_sequence = job.data.sequence_length * std::max<int64_t>(model.top_k(), 1);
  if (job.data.micro_batch_size <= most_rows / rows_of_sequence) return;
  refuse_if_any({mistake(
      fmt::format("data.micro_batch_size is {}, but with data.sequence_length {} and {} experts a token a rank would "
                  "route more than {} rows in a micro-step.",
                  job.data.micro_batch_size, job.data.sequence_length, model.top_k(), most_rows),
      fmt::format("Use at most {}, and data.global_batch_size for more sequences in a step.",
                  std::max<int64_t>(most_rows / rows_of_sequence, 1)),
      job.origins.of("data.micro_batch_size"))});
}

// What the products' scales and libraries want: whole blocks.
void check_fp8_sizes(const Job& job, const ModelConfig& model) {
  if (job.precision.experts != ExpertPrecision::fp8 || model.mixture() == nullptr) return;
  for (const auto& [name, size] :
       {std::pair("hidden_size", model.hidden_size), std::pair("intermediate_size", model.mixture()->intermediate)})
    if (size % fp8_block != 0)
      refuse_if_any({mistake(
          fmt::format("precision.experts is fp8, but the model's {} is {}, and fp8 has a scale for each {} elements.",
                      name, size, fp8_block),
          fmt::format("Set precision.experts to compute, or take a model whose {} is a multiple of {}.", name,
                      fp8_block),
          job.origins.of("precision.experts"))});
}

// What only experts use, asked for of a model that has none.
void check_experts_exist(const Job& job, const ModelConfig& model) {
  if (model.mixture() != nullptr) return;
  std::vector<std::string> mistakes;
  const auto refuse_if = [&](bool given, const char* key, const char* neutral) {
    if (given)
      mistakes.push_back(mistake(fmt::format("{} is {}, but the model has no experts.", key, values_of(job).at(key)),
                                 fmt::format("Set {} to {}, or take a model with experts.", key, neutral),
                                 job.origins.of(key)));
  };
  const MoeConfig& moe = job.moe;
  refuse_if(job.parallel.expert_parallel_degree > 1, "parallel.expert_parallel_degree", "1");
  refuse_if(moe.moe_load_balancing != LoadBalancing::aux_loss && moe.moe_load_balancing != LoadBalancing::none,
            "moe.moe_load_balancing", "none");
  refuse_if(moe.moe_aux_loss_coeff.value_or(0) > 0, "moe.moe_aux_loss_coeff", "null");
  refuse_if(moe.moe_z_loss_coeff > 0, "moe.moe_z_loss_coeff", "0");
  refuse_if(moe.router_jitter_noise.value_or(0) > 0, "moe.router_jitter_noise", "null");
  refuse_if(moe.global_token_shuffle, "moe.global_token_shuffle", "false");
  refuse_if(moe.capacity_factor.has_value(), "moe.capacity_factor", "null");
  refuse_if(job.metrics.record_routing, "metrics.record_routing", "false");
  refuse_if(moe.overload.value_or(OverloadPolicy::none) != OverloadPolicy::none, "moe.overload", "null");
  refuse_if(moe.dispatch_chunks.value_or(1) > 1, "moe.dispatch_chunks", "null");
  refuse_if(job.precision.experts == ExpertPrecision::fp8, "precision.experts", "compute");
  refuse_if_any(mistakes);
}

// What a router's kind of scores leaves without meaning.
void check_router(const Job& job, const ModelConfig& model) {
  const MixtureConfig* mixture = model.mixture();
  if (mixture == nullptr) return;
  std::vector<std::string> mistakes;
  const bool sigmoid = mixture->scores == MixtureConfig::Scores::sigmoid;
  const auto refuse_if = [&](bool given, const char* key, const char* reason, const char* remedy) {
    if (given)
      mistakes.push_back(
          mistake(fmt::format("{} is {}, but {}.", key, values_of(job).at(key), reason), remedy, job.origins.of(key)));
  };
  const MoeConfig& moe = job.moe;
  refuse_if(moe.moe_z_loss_coeff > 0 && sigmoid, "moe.moe_z_loss_coeff",
            "the model's router has sigmoid scores, which no logsumexp normalizes", "Set it to 0.");
  refuse_if(
      moe.moe_load_balancing == LoadBalancing::sinkhorn && (sigmoid || mixture->groups > 1 || mixture->selection_bias),
      "moe.moe_load_balancing",
      "the model's router has sigmoid scores, groups of experts or a selection bias, which this rule does not know",
      "Use bias, aux_loss or none.");
  refuse_if_any(mistakes);
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

// Keys that only spill uses, given without it.
bool asks_for_spill(const MoeConfig& moe) {
  return moe.spill_least_rows || moe.spill_threshold != MoeConfig().spill_threshold;
}

}  // namespace

bool spans_hosts(const CheckedJob& job, int64_t ranks_per_host) {
  return ranks_per_host % job.layout.degree(Axis::expert) != 0;
}

bool spans_hosts(const CheckedJob& job, const std::vector<int>& host_of_rank) {
  // An expert group's ranks are neighbours.
  for (int rank = 1; rank < job.layout.world_size(); ++rank)
    if (job.layout.index(Axis::expert, rank) > 0 && host_of_rank.at(rank) != host_of_rank.at(rank - 1)) return true;
  return false;
}

double CheckedJob::aux_coefficient() const {
  if (job.moe.moe_load_balancing != LoadBalancing::aux_loss || model.mixture() == nullptr) return 0.0;
  return job.moe.moe_aux_loss_coeff.value_or(model.router_aux_loss_coef);
}

std::string choose_dispatch(CheckedJob& job, bool spans_hosts) {
  MoeConfig& moe = job.job.moe;
  std::string because;
  if (!moe.overload) {
    if (moe.dispatcher == DispatcherKind::all_gather)
      because = "moe.dispatcher is all_gather";
    else if (moe.dispatch_chunks.value_or(1) > 1)
      because = fmt::format("moe.dispatch_chunks is {}", *moe.dispatch_chunks);
    else if (spans_hosts && !asks_for_spill(moe))
      because = "an expert group spans hosts";
    const bool travels = job.layout.degree(Axis::expert) > 1;
    moe.overload = because.empty() && travels ? OverloadPolicy::spill : OverloadPolicy::none;
    if (!travels) because.clear();
  }
  if (!moe.dispatch_chunks) moe.dispatch_chunks = spans_hosts && moe.overload == OverloadPolicy::none ? 2 : 1;
  return because;
}

CheckedJob check_job(Job job, const ModelConfig& model, int world_size) {
  std::vector<std::string> fitted;
  const int64_t experts = std::max<int64_t>(model.experts(), 1);  // of a dense model, none are divided
  if (job.parallel.elastic) fitted = fit_to_world(job, world_size, experts);
  check_experts_exist(job, model);
  check_router(job, model);
  Layout layout(world_size, job.parallel, experts, job.origins);
  const int64_t micro_steps = micro_steps_per_step(job, world_size);
  if (job.data.sequence_length > model.max_position_embeddings)
    user_error("data.sequence_length is {}, but the model ends at max_position_embeddings {} ({}). Use at most {}.",
               job.data.sequence_length, model.max_position_embeddings, job.model.config.string(),
               model.max_position_embeddings);
  check_rows(job, model);
  check_reshard_rule(job, model);
  check_fp8_sizes(job, model);
  if (!job.moe.aux_loss_layers && job.moe.moe_load_balancing == LoadBalancing::aux_loss)
    job.moe.aux_loss_layers = job.model.init_from ? AuxLossLayers::together : AuxLossLayers::each;
  return {std::move(job), model, layout, micro_steps, std::move(fitted), {}};
}

}  // namespace conclave
