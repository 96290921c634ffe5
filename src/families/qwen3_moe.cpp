// Qwen3-MoE (Yang et al., "Qwen3 Technical Report", arXiv 2505.09388): queries and keys are normed head by head, layers
// are sparse or dense by their number.
#include "families/qwen3_moe.h"

#include <nlohmann/json.hpp>

#include "families/decoder_keys.h"
#include "families/parameter_names.h"
#include "families/qwen_keys.h"

namespace conclave {
namespace {

ModelConfig read(HuggingFaceKeys& keys) {
  ModelConfig config = read_decoder(keys, {.key_value_heads = 4, .max_position_embeddings = 32768});
  for (LayerConfig& layer : config.layers) layer.attention.qk_norm = AttentionConfig::QkNorm::per_head;
  read_attention_bias(keys, config);
  // Transformers reads neither max_window_layers nor layer_types here: the window is in all layers or in none.
  read_switched_window(keys, config, [](int64_t) { return true; });
  const MixtureConfig mixture = read_softmax_mixture(keys, config);
  read_sparse_layers(keys, config, mixture);
  keys.finish();
  check_heads(keys, config);
  refuse_too_many_choices(keys, mixture, "num_experts");
  return config;
}

void write(const ModelConfig& config, nlohmann::json& written) {
  write_switched_window(config, written);
  written.erase("layer_types");
  write_sparse_layers(config, written);
  written["attention_bias"] = config.layers.front().attention.qkv_bias;
}

std::vector<DiskNames> names(const ModelConfig& config) {
  return parameter_names(config, {});
}

}  // namespace

const Family qwen3_moe_family = {"qwen3_moe", "Qwen3-MoE", "Qwen3MoeForCausalLM", read, write, names};

}  // namespace conclave
