#include "mesh/checked_job.h"

#include "base/error.h"
#include "config/job_check.h"

namespace conclave {

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
  if (job.memory.activation_offloading)
    refuse_if_any({mistake("memory.activation_offloading is true, but this version keeps activations on the device.",
                           "Set it to false; memory.activation_checkpointing: full keeps only the input of each layer.",
                           job.origins.of("memory.activation_offloading"))});
  return {std::move(job), model, layout, micro_steps};
}

}  // namespace conclave
