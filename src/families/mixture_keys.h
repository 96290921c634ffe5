// The keys of mixtures that several families share.
#pragma once

#include <nlohmann/json.hpp>

#include "config/model_config.h"
#include "families/hugging_face_keys.h"

namespace conclave {

// DeepSeek's: n_routed_experts, n_shared_experts, moe_intermediate_size, routed_scaling_factor, n_group, topk_group,
// and first_k_dense_replace, the dense layers before those with experts. What absent keys mean:
struct DeepseekMixtureDefaults {
  int64_t groups = 1;
  int64_t chosen_groups = 1;
  int64_t shared_experts = 1;
  int64_t dense_layers = 0;
  double scaling_factor = 1;
};
// Gives every layer its MLP. `mixture` says what the family's router is.
void read_deepseek_mixture(HuggingFaceKeys& keys, ModelConfig& config, MixtureConfig mixture,
                           const DeepseekMixtureDefaults& defaults);
void write_deepseek_mixture(const ModelConfig& config, nlohmann::json& written);

// The routers of DeepSeek-V3 and GLM-4-MoE: sigmoid scores with a selection bias, groups as good as their two best
// experts. norm_topk_prob says whether the chosen scores are renormalized.
MixtureConfig read_sigmoid_router(HuggingFaceKeys& keys);

}  // namespace conclave
