// The keys of mixtures as DeepSeek-V2 has them, and DeepSeek-V3 and GLM-4-MoE after it: dense layers first, then many
// small experts in groups, with shared ones beside them.
#pragma once

#include <nlohmann/json.hpp>

#include "config/model_config.h"
#include "families/hugging_face_keys.h"

namespace conclave {

// What absent keys mean.
struct DeepseekMixtureDefaults {
  int64_t experts = 0;
  int64_t top_k = 0;
  int64_t intermediate = 0;
  int64_t dense_intermediate = 0;
  int64_t dense_layers = 0;
  int64_t shared_experts = 1;
  int64_t groups = 1;
  int64_t chosen_groups = 1;
  double scaling_factor = 1;
};

// The MLPs of all layers. `mixture` holds what the keys do not say.
void read_deepseek_mixture(HuggingFaceKeys& keys, const DeepseekMixtureDefaults& defaults, MixtureConfig mixture,
                           ModelConfig& config);
void write_deepseek_mixture(const ModelConfig& config, nlohmann::json& written);

}  // namespace conclave
