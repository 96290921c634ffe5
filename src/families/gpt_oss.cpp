// gpt-oss (OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", arXiv 2508.10925): attention sinks, a window in every other
// layer, biases everywhere, and experts with a clamped activation.
#include "families/gpt_oss.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "families/decoder_keys.h"
#include "families/parameter_names.h"

namespace conclave {
namespace {

using nlohmann::json;

constexpr const char* sliding = "sliding_attention";
constexpr const char* full = "full_attention";

void read_windows(HuggingFaceKeys& keys, ModelConfig& config) {
  int64_t window = 128;
  keys.read_size("sliding_window", window);
  json types = json::array();
  for (int64_t layer = 0; layer < config.layer_count(); ++layer) types.push_back(layer % 2 == 0 ? sliding : full);
  if (!keys.missing("layer_types")) types = keys.at("layer_types");
  const bool fits =
      types.is_array() && static_cast<int64_t>(types.size()) == config.layer_count() &&
      std::all_of(types.begin(), types.end(), [](const json& type) { return type == sliding || type == full; });
  if (!fits) {
    keys.refuse(fmt::format("layer_types is {}, but it must say \"{}\" or \"{}\" for each of {} layers.", types.dump(),
                            sliding, full, config.layer_count()),
                "");
    return;
  }
  for (size_t layer = 0; layer < types.size(); ++layer)
    if (types[layer] == sliding) config.layers[layer].attention.sliding_window = window;
}

// What Transformers takes where nothing is said of the rotary embedding.
void use_default_scaling(HuggingFaceKeys& keys, RotaryConfig& rotary) {
  if (!keys.missing("rope_parameters") || !keys.missing("rope_scaling")) return;
  rotary.scaling = RotaryConfig::Scaling::yarn;
  rotary.factor = 32;
  rotary.original_max_position_embeddings = 4096;
  rotary.truncate = false;
}

MixtureConfig read_mixture(HuggingFaceKeys& keys) {
  MixtureConfig mixture;
  keys.read_required_size(keys.missing("num_experts") ? "num_local_experts" : "num_experts", mixture.experts);
  keys.read_required_size("num_experts_per_tok", mixture.top_k);
  keys.read_required_size("intermediate_size", mixture.intermediate);
  keys.only("swiglu_limit", 7.0, true, "Transformers clamps this family's activations at 7");
  mixture.scores = MixtureConfig::Scores::softmax_of_chosen;
  mixture.router_bias = mixture.expert_biases = mixture.input_major = true;
  mixture.activation = MixtureConfig::Activation::clamped_swiglu;
  return mixture;
}

ModelConfig read(HuggingFaceKeys& keys) {
  ModelConfig config = read_decoder(keys, {.key_value_heads = 8,
                                           .head_dim = 64,
                                           .max_position_embeddings = 131072,
                                           .rms_norm_eps = 1e-5,
                                           .rope_theta = 150000});
  use_default_scaling(keys, config.rotary);
  read_windows(keys, config);
  bool biased = true;
  keys.read_flag("attention_bias", biased);
  for (LayerConfig& layer : config.layers) {
    layer.attention.qkv_bias = layer.attention.output_bias = biased;
    layer.attention.sinks = true;
  }
  const MixtureConfig mixture = read_mixture(keys);
  keys.read_number("router_aux_loss_coef", config.router_aux_loss_coef, 0, true);
  keys.finish();
  check_heads(keys, config);
  refuse_too_many_choices(keys, mixture, "num_local_experts");
  for (LayerConfig& layer : config.layers) layer.mlp = mixture;
  return config;
}

void write(const ModelConfig& config, json& written) {
  const MixtureConfig& mixture = *config.mixture();
  json types = json::array();
  std::optional<int64_t> window;
  for (const LayerConfig& layer : config.layers) {
    types.push_back(layer.attention.sliding_window ? sliding : full);
    if (layer.attention.sliding_window) window = layer.attention.sliding_window;
  }
  written.update({{"attention_bias", config.layers.front().attention.qkv_bias},
                  {"intermediate_size", mixture.intermediate},
                  {"layer_types", types},
                  {"num_experts_per_tok", mixture.top_k},
                  {"num_local_experts", mixture.experts},
                  {"output_router_logits", false},
                  {"router_aux_loss_coef", config.router_aux_loss_coef},
                  {"sliding_window", or_null(window)},
                  {"swiglu_limit", mixture.clamp_limit}});
}

std::vector<DiskNames> names(const ModelConfig& config) {
  return parameter_names(config, {.router = "mlp.router", .fused = true});
}

}  // namespace

const Family gpt_oss_family = {"gpt_oss", "gpt-oss", "GptOssForCausalLM", read, write, names};

}  // namespace conclave
