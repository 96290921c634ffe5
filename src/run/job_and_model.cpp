#include "run/job_and_model.h"

#include <fmt/format.h>

#include "families/family.h"
#include "run/frozen_parameters.h"

namespace conclave {

CheckedJob check_job_and_model(Job job, int world_size) {
  ModelConfig model = read_model_config(job.model.config);
  if (job.model.resize_vocabulary) model.vocab_size = *job.model.resize_vocabulary;
  model.frozen = frozen_parameters(job, model);
  const std::vector<std::string> unknown = unknown_keys(job.model.config);
  CheckedJob checked = check_job(std::move(job), model, world_size);
  if (!unknown.empty())
    checked.warnings.push_back(fmt::format("{} has keys that neither Transformers nor this version reads for a {}: {}",
                                           checked.job.model.config.string(), family_of(model).name,
                                           fmt::join(unknown, ", ")));
  return checked;
}

}  // namespace conclave
