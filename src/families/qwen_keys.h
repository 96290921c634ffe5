// What the families of Qwen have in common: a window that is switched on by a key of its own, and in mixtures, layers
// that are sparse or dense by their number.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>

#include "config/model_config.h"
#include "families/hugging_face_keys.h"

namespace conclave {

// sliding_window counts only where use_sliding_window is true; then in the layers that `by_default` takes, or that
// layer_types names. Absent, the window has 4096 tokens.
void read_switched_window(HuggingFaceKeys& keys, ModelConfig& config, const std::function<bool(int64_t)>& by_default);
// Those keys of a layer's window.
void write_switched_window(const ModelConfig& config, nlohmann::json& written);

// num_experts, num_experts_per_tok, moe_intermediate_size, norm_topk_prob, router_aux_loss_coef: of a softmax router.
MixtureConfig read_softmax_mixture(HuggingFaceKeys& keys, ModelConfig& config);
// decoder_sparse_step, mlp_only_layers, intermediate_size: each layer gets the mixture or a dense MLP.
void read_sparse_layers(HuggingFaceKeys& keys, ModelConfig& config, const MixtureConfig& mixture);
void write_sparse_layers(const ModelConfig& config, nlohmann::json& written);

}  // namespace conclave
