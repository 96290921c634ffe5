#include "families/decoder_keys.h"

#include <fmt/format.h>

#include "families/rotary_keys.h"

namespace conclave {
namespace {

using nlohmann::json;

json eos_token_id(const ModelConfig& config) {
  if (config.eos_token_ids.empty()) return {};
  return config.eos_token_ids.size() == 1 ? json(config.eos_token_ids[0]) : json(config.eos_token_ids);
}

// Null means as many as there are heads. An absent key means the class's default; where that does not divide the heads,
// no such model can be computed, and it means null.
void read_key_value_heads(HuggingFaceKeys& keys, std::optional<int64_t> by_default, AttentionConfig& attention) {
  const int64_t heads = attention.heads;
  const bool takes_default = keys.absent("num_key_value_heads") && by_default && heads % *by_default == 0;
  attention.key_value_heads = takes_default ? *by_default : heads;
  keys.read_size("num_key_value_heads", attention.key_value_heads);
}

}  // namespace

ModelConfig read_decoder(HuggingFaceKeys& keys, const DecoderDefaults& defaults) {
  ModelConfig config;
  AttentionConfig attention;
  int64_t layers = 0;
  config.hidden_size = attention.heads = 1;  // of a key that is refused
  keys.read_required_size("vocab_size", config.vocab_size);
  keys.read_required_size("hidden_size", config.hidden_size);
  keys.read_required_size("num_hidden_layers", layers);
  keys.read_required_size("num_attention_heads", attention.heads);
  read_key_value_heads(keys, defaults.key_value_heads, attention);
  attention.head_dim = defaults.head_dim.value_or(config.hidden_size / attention.heads);
  keys.read_size("head_dim", attention.head_dim);
  attention.value_head_dim = attention.head_dim;
  config.max_position_embeddings = defaults.max_position_embeddings;
  keys.read_size("max_position_embeddings", config.max_position_embeddings);
  config.rms_norm_eps = defaults.rms_norm_eps;
  keys.read_number("rms_norm_eps", config.rms_norm_eps, 0, false);
  keys.read_number("initializer_range", config.initializer_range, 0, true);
  keys.read_flag("tie_word_embeddings", config.tie_word_embeddings);
  config.bos_token_id = defaults.bos_token_id;
  config.eos_token_ids = defaults.eos_token_ids;
  config.pad_token_id = defaults.pad_token_id;
  keys.read_token("bos_token_id", config.bos_token_id);
  keys.read_tokens("eos_token_id", config.eos_token_ids);
  keys.read_token("pad_token_id", config.pad_token_id);
  config.rotary.theta = defaults.rope_theta;
  config.rotary.dims = attention.head_dim;
  read_rope(keys, defaults.partial_rotary_factor, config);
  config.layers.assign(layers, {attention, DenseMlpConfig()});
  return config;
}

void check_heads(HuggingFaceKeys& keys, const ModelConfig& config) {
  if (config.layers.empty()) return;
  const AttentionConfig& attention = config.layers.front().attention;
  const int64_t heads = attention.heads;
  const bool has_head_dim = attention.head_dim != config.hidden_size / heads || !keys.missing("head_dim");
  if (!has_head_dim && config.hidden_size % heads != 0) {
    keys.refuse(
        fmt::format(
            "hidden_size is {} and num_attention_heads is {}, which does not divide it, and there is no head_dim.",
            config.hidden_size, heads),
        "Give head_dim, or another number of heads.");
  } else if (attention.head_dim % 2 != 0) {
    keys.refuse(fmt::format("head_dim is {}{}, but the rotary embedding turns pairs of elements, so it must be even.",
                            attention.head_dim, keys.missing("head_dim") ? " (hidden_size / num_attention_heads)" : ""),
                "Use an even head_dim.");
  }
  if (heads % attention.key_value_heads != 0)
    keys.refuse(fmt::format("num_attention_heads is {}, but num_key_value_heads is {} and must divide it.", heads,
                            attention.key_value_heads),
                "Use a divisor of num_attention_heads.");
}

void read_window_of_all_layers(HuggingFaceKeys& keys, ModelConfig& config, std::optional<int64_t> by_default) {
  std::optional<int64_t> window = keys.absent("sliding_window") ? by_default : std::nullopt;
  if (!keys.missing("sliding_window")) keys.read_size("sliding_window", window.emplace());
  for (LayerConfig& layer : config.layers) layer.attention.sliding_window = window;
  keys.only_for_each_layer("layer_types", config.layer_count(), window ? "sliding_attention" : "full_attention");
}

void read_attention_bias(HuggingFaceKeys& keys, ModelConfig& config) {
  bool biased = false;
  keys.read_flag("attention_bias", biased);
  for (LayerConfig& layer : config.layers) layer.attention.qkv_bias = layer.attention.output_bias = biased;
}

void read_dense_mlps(HuggingFaceKeys& keys, ModelConfig& config) {
  DenseMlpConfig mlp;
  keys.read_required_size("intermediate_size", mlp.intermediate);
  for (LayerConfig& layer : config.layers) layer.mlp = mlp;
}

void refuse_too_many_choices(HuggingFaceKeys& keys, const MixtureConfig& mixture, const char* key_of_experts) {
  if (mixture.top_k <= mixture.experts) return;
  keys.refuse(fmt::format("num_experts_per_tok is {}, but there are only {} experts ({}).", mixture.top_k,
                          mixture.experts, key_of_experts),
              fmt::format("Use at most {}.", mixture.experts));
}

json or_null(const std::optional<int64_t>& value) {
  return value ? json(*value) : json();
}

json written_decoder(const ModelConfig& config) {
  const AttentionConfig& attention = config.layers.front().attention;
  return {
      {"attention_dropout", 0.0},
      {"bos_token_id", or_null(config.bos_token_id)},
      {"eos_token_id", eos_token_id(config)},
      {"head_dim", attention.head_dim},
      {"hidden_act", "silu"},
      {"hidden_size", config.hidden_size},
      {"initializer_range", config.initializer_range},
      {"max_position_embeddings", config.max_position_embeddings},
      {"num_attention_heads", attention.heads},
      {"num_hidden_layers", config.layer_count()},
      {"num_key_value_heads", attention.key_value_heads},
      {"pad_token_id", or_null(config.pad_token_id)},
      {"rms_norm_eps", config.rms_norm_eps},
      {"rope_parameters", written_rope(config.rotary)},
      {"rope_theta", config.rotary.theta},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"use_cache", true},
      {"vocab_size", config.vocab_size},
  };
}

}  // namespace conclave
