#include "config/model_config.h"

#include <fmt/format.h>

#include "config/hugging_face_keys.h"
#include "config/unsupported_keys.h"

namespace conclave {
namespace {

using nlohmann::json;

void check_fit(HuggingFaceKeys& keys, const ModelConfig& config, bool has_head_dim) {
  const int64_t heads = config.num_attention_heads;
  if (!has_head_dim && config.hidden_size % heads != 0) {
    keys.refuse(
        fmt::format(
            "hidden_size is {} and num_attention_heads is {}, which does not divide it, and there is no head_dim.",
            config.hidden_size, heads),
        "Give head_dim, or another number of heads.");
  } else if (config.head_dim % 2 != 0) {
    keys.refuse(fmt::format("head_dim is {}{}, but the rotary embedding turns pairs of elements, so it must be even.",
                            config.head_dim, has_head_dim ? "" : " (hidden_size / num_attention_heads)"),
                "Use an even head_dim.");
  }
  if (heads % config.num_key_value_heads != 0)
    keys.refuse(fmt::format("num_attention_heads is {}, but num_key_value_heads is {} and must divide it.", heads,
                            config.num_key_value_heads),
                "Use a divisor of num_attention_heads.");
  if (config.num_experts_per_tok > config.num_local_experts)
    keys.refuse(fmt::format("num_experts_per_tok is {}, but there are only {} experts (num_local_experts).",
                            config.num_experts_per_tok, config.num_local_experts),
                fmt::format("Use at most {}.", config.num_local_experts));
  if (config.router_jitter_noise >= 1)
    keys.refuse(fmt::format("router_jitter_noise is {}, but it must be less than 1.", config.router_jitter_noise), "");
}

// Transformers' newer name of num_local_experts, which goes before it.
void read_experts(HuggingFaceKeys& keys, int64_t& experts) {
  if (keys.missing("num_experts")) {
    keys.read_required_size("num_local_experts", experts);
  } else {
    keys.read_size("num_local_experts", experts);
    keys.read_size("num_experts", experts);
  }
}

// Null means as many as there are heads. An absent key means 8 to Transformers; where 8 does not divide the heads, no
// such model can be computed, and it means null.
void read_key_value_heads(HuggingFaceKeys& keys, ModelConfig& config) {
  const int64_t heads = config.num_attention_heads;
  const int64_t by_default = ModelConfig().num_key_value_heads;
  config.num_key_value_heads = keys.absent("num_key_value_heads") && heads % by_default == 0 ? by_default : heads;
  keys.read_size("num_key_value_heads", config.num_key_value_heads);
}

}  // namespace

ModelConfig parse_model_config(HuggingFaceKeys& keys) {
  keys.only("model_type", "mixtral", false, "this version trains Mixtral models only");
  check_supported(keys);
  keys.finish();  // of another architecture nothing else means what it says

  ModelConfig config;
  keys.read_required_size("vocab_size", config.vocab_size);
  keys.read_required_size("hidden_size", config.hidden_size);
  keys.read_required_size("intermediate_size", config.intermediate_size);
  keys.read_required_size("num_hidden_layers", config.num_hidden_layers);
  keys.read_required_size("num_attention_heads", config.num_attention_heads);
  read_experts(keys, config.num_local_experts);
  keys.read_required_size("num_experts_per_tok", config.num_experts_per_tok);
  read_key_value_heads(keys, config);
  config.head_dim = config.hidden_size / config.num_attention_heads;
  keys.read_size("head_dim", config.head_dim);
  keys.read_size("max_position_embeddings", config.max_position_embeddings);
  keys.read_number("rms_norm_eps", config.rms_norm_eps, 0, false);
  keys.read_number("initializer_range", config.initializer_range, 0, true);
  keys.read_number("router_aux_loss_coef", config.router_aux_loss_coef, 0, true);
  keys.read_number("router_jitter_noise", config.router_jitter_noise, 0, true);
  keys.read_flag("tie_word_embeddings", config.tie_word_embeddings);
  if (!keys.missing("sliding_window")) keys.read_size("sliding_window", config.sliding_window.emplace());
  keys.read_token("bos_token_id", config.bos_token_id);
  keys.read_tokens("eos_token_id", config.eos_token_ids);
  keys.read_token("pad_token_id", config.pad_token_id);
  read_rope(keys, config.rope_theta);
  check_layers_are_alike(keys, config);
  keys.finish();
  check_fit(keys, config, !keys.missing("head_dim"));
  keys.finish();
  return config;
}

ModelConfig read_model_config(const std::filesystem::path& file_or_folder) {
  const ConfigText config = read_config_text(file_or_folder, "a Mixtral");
  return parse_model_config(config.text, config.origin);
}

std::vector<std::string> unknown_keys(const std::filesystem::path& file_or_folder) {
  HuggingFaceKeys keys(read_config_text(file_or_folder, "a Mixtral"));
  parse_model_config(keys);
  return keys.unknown();
}

ModelConfig parse_model_config(const std::string& text, const std::string& origin) {
  HuggingFaceKeys keys({text, origin});
  return parse_model_config(keys);
}

namespace {

json or_null(const std::optional<int64_t>& value) {
  return value ? json(*value) : json();
}

json eos_token_id(const ModelConfig& config) {
  if (config.eos_token_ids.empty()) return {};
  return config.eos_token_ids.size() == 1 ? json(config.eos_token_ids[0]) : json(config.eos_token_ids);
}

}  // namespace

std::string hugging_face_generation_config_json(const ModelConfig& config) {
  const json written = {{"bos_token_id", or_null(config.bos_token_id)},
                        {"eos_token_id", eos_token_id(config)},
                        {"pad_token_id", or_null(config.pad_token_id)}};
  return written.dump(2) + "\n";
}

std::string hugging_face_config_json(const ModelConfig& config, std::string_view dtype) {
  const json written = {
      {"architectures", {"MixtralForCausalLM"}},
      {"attention_dropout", 0.0},
      {"bos_token_id", or_null(config.bos_token_id)},
      {"dtype", dtype},
      {"eos_token_id", eos_token_id(config)},
      {"head_dim", config.head_dim},
      {"hidden_act", "silu"},
      {"hidden_size", config.hidden_size},
      {"initializer_range", config.initializer_range},
      {"intermediate_size", config.intermediate_size},
      {"max_position_embeddings", config.max_position_embeddings},
      {"model_type", "mixtral"},
      {"num_attention_heads", config.num_attention_heads},
      {"num_experts_per_tok", config.num_experts_per_tok},
      {"num_hidden_layers", config.num_hidden_layers},
      {"num_key_value_heads", config.num_key_value_heads},
      {"num_local_experts", config.num_local_experts},
      {"output_router_logits", false},
      {"pad_token_id", or_null(config.pad_token_id)},
      {"rms_norm_eps", config.rms_norm_eps},
      {"rope_parameters", {{"rope_theta", config.rope_theta}, {"rope_type", "default"}}},
      {"rope_theta", config.rope_theta},
      {"router_aux_loss_coef", config.router_aux_loss_coef},
      {"router_jitter_noise", config.router_jitter_noise},
      {"sliding_window", or_null(config.sliding_window)},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"torch_dtype", dtype},
      {"use_cache", true},
      {"vocab_size", config.vocab_size},
  };
  return written.dump(2) + "\n";
}

}  // namespace conclave
