// The rotary embedding as Transformers 4 or 5 writes it: rope_theta, rope_parameters, rope_scaling.
#pragma once

#include <nlohmann/json.hpp>

#include "config/model_config.h"
#include "families/hugging_face_keys.h"

namespace conclave {

// Takes the base and the kind of scaling, with Transformers' own precedence; config.rotary holds the class's defaults.
// Refuses kinds that no block knows, and numbers that the kind does not use. `turned_part`: of the elements of a head,
// by default; none: the class turns whole heads, whatever the key says.
void read_rope(HuggingFaceKeys& keys, std::optional<double> turned_part, ModelConfig& config);

// The group rope_parameters.
nlohmann::json written_rope(const RotaryConfig& rotary);

}  // namespace conclave
