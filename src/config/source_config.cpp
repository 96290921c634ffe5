#include "config/source_config.h"

#include <fmt/format.h>

#include "config/hugging_face_keys.h"
#include "config/unsupported_keys.h"

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
  read_rope(keys, dense.rope_theta);
  return dense;
}

// A dense Mistral or Llama.
ModelConfig read_dense_source(HuggingFaceKeys& keys) {
  const json type = keys.missing("model_type") ? json() : keys.at("model_type");
  if (type != "mistral" && type != "llama") {
    keys.refuse(
        fmt::format("model_type is {}, but model.upcycle_from takes a dense \"mistral\" or \"llama\".", type.dump()),
        type == "mixtral" ? "A Mixtral goes on from its own weights with model.init_from." : "");
    keys.finish();
  }
  check_supported(keys);
  for (const char* bias : {"attention_bias", "mlp_bias"}) keys.only(bias, false, true, "a Mixtral has no such biases");
  keys.finish();
  const ModelConfig dense = read_dense_config(keys);
  keys.finish();
  return dense;
}

// Refuses each value that the source and `model` must have in common, by its key.
void compare(HuggingFaceKeys& keys, const ModelConfig& source, const ModelConfig& model, bool experts_too) {
  const auto same = [&](const char* key, const json& has, const json& wanted) {
    if (has != wanted)
      keys.refuse(fmt::format("{} is {}, but that of model.config is {}.", key, has.dump(), wanted.dump()),
                  fmt::format("Set {} to {} in model.config, or start from another model.", key, has.dump()));
  };
  const auto window = [](const ModelConfig& config) {
    return config.sliding_window ? json(*config.sliding_window) : json();
  };
  same("hidden_size", source.hidden_size, model.hidden_size);
  same("intermediate_size", source.intermediate_size, model.intermediate_size);
  same("num_hidden_layers", source.num_hidden_layers, model.num_hidden_layers);
  same("num_attention_heads", source.num_attention_heads, model.num_attention_heads);
  same("num_key_value_heads", source.num_key_value_heads, model.num_key_value_heads);
  same("head_dim", source.head_dim, model.head_dim);
  same("rms_norm_eps", source.rms_norm_eps, model.rms_norm_eps);
  same("rope_theta", source.rope_theta, model.rope_theta);
  same("tie_word_embeddings", source.tie_word_embeddings, model.tie_word_embeddings);
  same("sliding_window", window(source), window(model));
  if (!experts_too) return;
  same("num_local_experts", source.num_local_experts, model.num_local_experts);
  same("num_experts_per_tok", source.num_experts_per_tok, model.num_experts_per_tok);
}

void compare_vocabularies(HuggingFaceKeys& keys, const ModelSource& source, int64_t has, int64_t wanted) {
  if (!source.resize_vocabulary && has != wanted) {
    keys.refuse(
        fmt::format("vocab_size is {}, but that of model.config is {}.", has, wanted),
        fmt::format("Set vocab_size to {} in model.config, or set model.resize_vocabulary to {}.", has, wanted));
  } else if (wanted < has && !source.shrink_vocabulary) {
    keys.refuse(fmt::format("vocab_size is {}, but model.resize_vocabulary is {}, which would drop the last {} tokens.",
                            has, wanted, has - wanted),
                "Give a larger model.resize_vocabulary, or set model.shrink_vocabulary to true.");
  }
}

}  // namespace

int64_t check_source_config(const ModelSource& source, const ModelConfig& model) {
  const bool is_dense = source.upcycle_from.has_value();
  HuggingFaceKeys keys(is_dense ? read_config_text(*source.upcycle_from, "a dense Mistral or Llama")
                                : read_config_text(source.init_from.value(), "a Mixtral"));
  const ModelConfig config = is_dense ? read_dense_source(keys) : parse_model_config(keys);
  compare_vocabularies(keys, source, config.vocab_size, model.vocab_size);
  compare(keys, config, model, /*experts_too=*/!is_dense);
  keys.finish();
  return config.vocab_size;
}

}  // namespace conclave
