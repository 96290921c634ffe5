// What Mixtral's parameters are called in Hugging Face files: one tensor per expert and projection (Transformers 4, and
// what Transformers 5 saves), or experts fused (a Transformers 5 checkpoint that was loaded already fused).
#pragma once

#include <vector>

#include "checkpoint/tensor_slice.h"
#include "config/model_config.h"

namespace conclave {

std::vector<DiskNames> mixtral_disk_names(const ModelConfig& config);

}  // namespace conclave
