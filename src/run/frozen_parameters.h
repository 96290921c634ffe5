// Which parameters train.freeze leaves as they are.
#pragma once

#include <set>
#include <string>

#include "config/job.h"
#include "config/model_config.h"

namespace conclave {

// Names of the parameters that the job's patterns freeze, in a model without any yet. A pattern is held against the
// names that published files have for a parameter, in any form that is read. UserError for a pattern that matches
// nothing or only a part of what is one parameter here, and when nothing is left to train.
std::set<std::string> frozen_parameters(const Job& job, const ModelConfig& model);

}  // namespace conclave
