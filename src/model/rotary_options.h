// A model's rotary embedding as the kernels take it.
#pragma once

#include "config/model_config.h"
#include "kernels/rotary.h"

namespace conclave {

RotaryOptions rotary_options(const RotaryConfig& config);

}  // namespace conclave
