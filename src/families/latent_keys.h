// The keys of latent attention, which DeepSeek-V2 and V3 have.
#pragma once

#include <nlohmann/json.hpp>

#include "config/model_config.h"
#include "families/hugging_face_keys.h"

namespace conclave {

// Makes the attention of all layers latent; `config` is what read_decoder has read.
void read_latent_attention(HuggingFaceKeys& keys, ModelConfig& config);
void write_latent_attention(const ModelConfig& config, nlohmann::json& written);

}  // namespace conclave
