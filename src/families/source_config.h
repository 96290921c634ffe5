// The config.json beside the weights that a run starts from: a model of the same family (model.init_from), or a dense
// one whose MLPs become experts (model.upcycle_from).
#pragma once

#include <cstdint>

#include "config/model_config.h"
#include "config/model_section.h"

namespace conclave {

// Refuses, with a UserError that holds all mistakes: another architecture; what this engine does not compute; and each
// value that must be `model`'s for the two to compute the same, by its key. The vocabulary may differ when
// model.resize_vocabulary is given; it may be smaller than the source's only when model.shrink_vocabulary is true.
// Returns the source's vocabulary. `source` gives one of the two folders.
int64_t check_source_config(const ModelSource& source, const ModelConfig& model);

}  // namespace conclave
