#include "mesh/checked_job.h"

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

}  // namespace

CheckedJob check_job(Job job, int world_size) {
  const ModelConfig model = read_model_config(job.model.config);
  return check_job(std::move(job), model, world_size);
}

CheckedJob check_job(Job job, const ModelConfig& model, int world_size) {
  Layout layout(world_size, job.parallel, model.num_local_experts, job.origins);
  const int64_t micro_steps = micro_steps_per_step(job, world_size);
  if (job.data.sequence_length > model.max_position_embeddings)
    user_error("data.sequence_length is {}, but the model ends at max_position_embeddings {} ({}). Use at most {}.",
               job.data.sequence_length, model.max_position_embeddings, job.model.config.string(),
               model.max_position_embeddings);
  check_reshard_rule(job, model);
  return {std::move(job), model, layout, micro_steps};
}

}  // namespace conclave
