// A small Mixtral for tests, by the numbers of its config.json.
#pragma once

#include <optional>

#include "config/model_config.h"

namespace conclave {

// The defaults are Mixtral 8x7B's.
struct MixtralShape {
  int64_t vocab_size = 32000;
  int64_t hidden_size = 4096;
  int64_t intermediate_size = 14336;
  int64_t num_hidden_layers = 32;
  int64_t num_attention_heads = 32;
  int64_t num_key_value_heads = 8;
  int64_t head_dim = 128;
  int64_t max_position_embeddings = 131072;
  double rms_norm_eps = 1e-5;
  double rope_theta = 1e6;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  std::optional<int64_t> sliding_window = {};
  int64_t num_experts_per_tok = 2;
  int64_t num_local_experts = 8;
  double router_aux_loss_coef = 0.001;
  double router_jitter_noise = 0.0;

  operator ModelConfig() const {  // NOLINT: where a model is asked for, this is one
    ModelConfig config;
    config.family = "mixtral";
    config.vocab_size = vocab_size;
    config.hidden_size = hidden_size;
    config.max_position_embeddings = max_position_embeddings;
    config.rms_norm_eps = rms_norm_eps;
    config.initializer_range = initializer_range;
    config.tie_word_embeddings = tie_word_embeddings;
    config.rotary.theta = rope_theta;
    config.rotary.dims = head_dim;
    config.router_aux_loss_coef = router_aux_loss_coef;
    config.router_jitter_noise = router_jitter_noise;
    AttentionConfig attention;
    attention.heads = num_attention_heads;
    attention.key_value_heads = num_key_value_heads;
    attention.head_dim = attention.value_head_dim = head_dim;
    attention.sliding_window = sliding_window;
    MixtureConfig mixture;
    mixture.experts = num_local_experts;
    mixture.top_k = num_experts_per_tok;
    mixture.intermediate = intermediate_size;
    config.layers.assign(static_cast<size_t>(num_hidden_layers), {attention, mixture});
    return config;
  }
};

}  // namespace conclave
