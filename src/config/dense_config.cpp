#include "config/dense_config.h"

#include <fmt/format.h>

#include "config/hugging_face_keys.h"

namespace conclave {
namespace {

using nlohmann::json;

// Absent keys mean what Transformers' MistralConfig and LlamaConfig make of them.
ModelConfig read_dense_config(HuggingFaceKeys& keys) {
  const bool is_mistral = keys.at("model_type") == "mistral";
  ModelConfig dense;
  keys.read_required_size("vocab_size", dense.vocab_size);
  keys.read_required_size("hidden_size", dense.hidden_size);
  keys.read_required_size("intermediate_size", dense.intermediate_size);
  keys.read_required_size("num_hidden_layers", dense.num_hidden_layers);
  keys.read_required_size("num_attention_heads", dense.num_attention_heads);
  dense.num_key_value_heads = is_mistral && keys.absent("num_key_value_heads") ? 8 : dense.num_attention_heads;
  keys.read_size("num_key_value_heads", dense.num_key_value_heads);
  dense.head_dim = dense.hidden_size / dense.num_attention_heads;
  keys.read_size("head_dim", dense.head_dim);
  dense.rms_norm_eps = 1e-6;
  keys.read_number("rms_norm_eps", dense.rms_norm_eps, 0, false);
  keys.read_flag("tie_word_embeddings", dense.tie_word_embeddings);
  if (is_mistral && keys.absent("sliding_window")) dense.sliding_window = 4096;
  if (is_mistral && !keys.missing("sliding_window")) keys.read_size("sliding_window", dense.sliding_window.emplace());
  dense.rope_theta = 10000.0;
  keys.read_rope(dense.rope_theta);
  return dense;
}

}  // namespace

void check_dense_config(const std::filesystem::path& folder, const ModelConfig& model) {
  HuggingFaceKeys keys(read_config_text(folder, "a dense Mistral or Llama"));
  const json type = keys.missing("model_type") ? json() : keys.at("model_type");
  if (type != "mistral" && type != "llama") {
    keys.refuse(
        fmt::format("model_type is {}, but model.upcycle_from takes a dense \"mistral\" or \"llama\".", type.dump()),
        type == "mixtral" ? "A Mixtral goes on from its own weights with model.init_from." : "");
    keys.finish();
  }
  keys.check_supported();
  for (const char* bias : {"attention_bias", "mlp_bias"}) keys.only(bias, false, true, "a Mixtral has no such biases");
  keys.finish();
  const ModelConfig dense = read_dense_config(keys);
  keys.finish();

  const auto compare = [&](const char* key, const json& has, const json& wanted) {
    if (has != wanted)
      keys.refuse(fmt::format("{} is {}, but that of model.config is {}.", key, has.dump(), wanted.dump()),
                  fmt::format("Set {} to {} in model.config, or upcycle another model.", key, has.dump()));
  };
  const auto window = [](const ModelConfig& config) {
    return config.sliding_window ? json(*config.sliding_window) : json();
  };
  compare("vocab_size", dense.vocab_size, model.vocab_size);
  compare("hidden_size", dense.hidden_size, model.hidden_size);
  compare("intermediate_size", dense.intermediate_size, model.intermediate_size);
  compare("num_hidden_layers", dense.num_hidden_layers, model.num_hidden_layers);
  compare("num_attention_heads", dense.num_attention_heads, model.num_attention_heads);
  compare("num_key_value_heads", dense.num_key_value_heads, model.num_key_value_heads);
  compare("head_dim", dense.head_dim, model.head_dim);
  compare("rms_norm_eps", dense.rms_norm_eps, model.rms_norm_eps);
  compare("rope_theta", dense.rope_theta, model.rope_theta);
  compare("tie_word_embeddings", dense.tie_word_embeddings, model.tie_word_embeddings);
  compare("sliding_window", window(dense), window(model));
  keys.finish();
}

}  // namespace conclave
