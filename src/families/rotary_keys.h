// The rotary embedding as Transformers 4 or 5 writes it: rope_theta, rope_parameters, rope_scaling.
#pragma once

#include <nlohmann/json.hpp>

#include "config/model_config.h"
#include "families/hugging_face_keys.h"

namespace conclave {

// Takes the base and the kind of scaling, with Transformers' own precedence; config.rotary holds the class's defaults.
// Refuses kinds that no block knows, and numbers that the kind does not use.
void read_rope(HuggingFaceKeys& keys, ModelConfig& config);

// The group rope_parameters.
nlohmann::json written_rope(const RotaryConfig& rotary);

}  // namespace conclave
