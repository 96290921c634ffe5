// The adapter that a job asks for, on its model.
#pragma once

#include <optional>
#include <set>
#include <string>

#include "config/job.h"
#include "config/model_config.h"

namespace conclave {

// None: the job asks for none. UserError for modules that the model does not have, and for what an adapter cannot be
// combined with.
std::optional<AdapterShape> adapter_shape(const Job& job, const ModelConfig& model);

// The same of an adapter that was described elsewhere, in `place`.
AdapterShape adapter_shape(const AdapterConfig& adapter, const ModelConfig& model, uint64_t seed,
                           const std::string& place = "");

// The parameters of the model itself that are not trained beside the adapter.
std::set<std::string> frozen_beside(const AdapterConfig& adapter, const ModelConfig& model);

// `model` with the adapter, all but which is frozen.
ModelConfig with_adapter(ModelConfig model, const AdapterConfig& adapter);

}  // namespace conclave
