// The parameters of a model, unit by unit, as its blocks declare them, under Conclave's own names. Projections that are
// always used together are one parameter: query, key and value rows in `qkv`, gate and up rows in `gate_up`.
#pragma once

#include <vector>

#include "base/parameter_declaration.h"
#include "config/model_config.h"

namespace conclave {

// Units in forward order: the embedding, the decoder layers, the head.
std::vector<UnitDeclaration> declare_model(const ModelConfig& config);

int64_t count_parameters(const std::vector<UnitDeclaration>& units);
// Those that are not frozen.
int64_t count_trained_parameters(const std::vector<UnitDeclaration>& units);
// That one token uses: all but the experts it is not routed to.
int64_t count_parameters_per_token(const std::vector<UnitDeclaration>& units, const ModelConfig& config);

}  // namespace conclave
