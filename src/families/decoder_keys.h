// The keys of a config.json that decoders of all families have, and that several have: read and written in one place.
#pragma once

#include <nlohmann/json.hpp>

#include "config/model_config.h"
#include "families/hugging_face_keys.h"

namespace conclave {

// What absent keys mean to a family's config class in Transformers.
struct DecoderDefaults {
  std::optional<int64_t> key_value_heads = {};  // none: as many as heads
  std::optional<int64_t> head_dim = {};         // none: hidden_size / num_attention_heads
  int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<double> partial_rotary_factor = {};  // none: heads turn as a whole
  std::optional<int64_t> bos_token_id = {};
  std::vector<int64_t> eos_token_ids = {};
  std::optional<int64_t> pad_token_id = {};
};

// Everything but the layers' MLPs, with layers alike: sizes, attention without window, rotary embedding, norms, tokens.
ModelConfig read_decoder(HuggingFaceKeys& keys, const DecoderDefaults& defaults);
// Refuses heads that do not fit each other; for families whose values were read without a mistake.
void check_heads(HuggingFaceKeys& keys, const ModelConfig& config);

// Every family's layers are given by functions of the layer's number.
void read_window_of_all_layers(HuggingFaceKeys& keys, ModelConfig& config, std::optional<int64_t> by_default);
// attention_bias: of the query, key, value and output projections.
void read_attention_bias(HuggingFaceKeys& keys, ModelConfig& config);
// intermediate_size, of a dense MLP in every layer.
void read_dense_mlps(HuggingFaceKeys& keys, ModelConfig& config);
void refuse_too_many_choices(HuggingFaceKeys& keys, const MixtureConfig& mixture, const char* key_of_experts);

// The keys that read_decoder takes, and those that say that nothing special is done.
nlohmann::json written_decoder(const ModelConfig& config);
nlohmann::json or_null(const std::optional<int64_t>& value);

}  // namespace conclave
