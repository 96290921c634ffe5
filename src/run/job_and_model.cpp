#include "run/job_and_model.h"

#include <fmt/format.h>

#include "families/family.h"
#include "run/adapter_shape.h"
#include "run/base_fingerprint.h"
#include "run/frozen_parameters.h"

namespace conclave {

CheckedJob check_job_and_model(Job job, int world_size) {
  ModelConfig model = read_model_config(job.model.config);
  if (job.model.resize_vocabulary) model.vocab_size = *job.model.resize_vocabulary;
  const std::optional<AdapterShape> adapter = adapter_shape(job, model);
  model.frozen = adapter ? frozen_beside(job.adapter, model) : frozen_parameters(job, model);
  model.adapter = adapter;
  const std::vector<std::string> unknown = unknown_keys(job.model.config);
  CheckedJob checked = check_job(std::move(job), model, world_size);
  if (checked.model.adapter && checked.job.model.init_from)
    checked.base_fingerprint = base_fingerprint(*checked.job.model.init_from);
  if (!unknown.empty())
    checked.warnings.push_back(fmt::format("{} has keys that neither Transformers nor this version reads for a {}: {}",
                                           checked.job.model.config.string(), family_of(model).name,
                                           fmt::join(unknown, ", ")));
  return checked;
}

}  // namespace conclave
