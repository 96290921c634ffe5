// The keys of multi-head latent attention, which DeepSeek-V2 and V3 share.
#pragma once

#include <nlohmann/json.hpp>

#include "config/model_config.h"
#include "families/hugging_face_keys.h"

namespace conclave {

// Gives every layer its attention. What Transformers writes as head_dim, the part of a head that turns, means nothing.
void read_latent_attention(HuggingFaceKeys& keys, ModelConfig& config);
void write_latent_attention(const ModelConfig& config, nlohmann::json& written);

}  // namespace conclave
