// Qwen3 (Yang et al., "Qwen3 Technical Report", arXiv 2505.09388), dense: queries and keys are normed head by head.
#include "families/qwen3.h"

#include <nlohmann/json.hpp>

#include "families/decoder_keys.h"
#include "families/parameter_names.h"
#include "families/qwen_keys.h"

namespace conclave {
namespace {

ModelConfig read(HuggingFaceKeys& keys) {
  ModelConfig config = read_decoder(keys, {.key_value_heads = 32, .head_dim = 128, .max_position_embeddings = 32768});
  for (LayerConfig& layer : config.layers) layer.attention.qk_norm = AttentionConfig::QkNorm::per_head;
  read_attention_bias(keys, config);
  int64_t first_sliding = 28;
  keys.read_count("max_window_layers", first_sliding);
  read_switched_window(keys, config, [&](int64_t layer) { return layer >= first_sliding; });
  read_dense_mlps(keys, config);
  keys.finish();
  check_heads(keys, config);
  return config;
}

void write(const ModelConfig& config, nlohmann::json& written) {
  write_switched_window(config, written);
  written.update({{"attention_bias", config.layers.front().attention.qkv_bias},
                  {"intermediate_size", std::get<DenseMlpConfig>(config.layers.front().mlp).intermediate},
                  {"max_window_layers", config.layer_count()}});
}

std::vector<DiskNames> names(const ModelConfig& config) {
  return parameter_names(config, {});
}

}  // namespace

const Family qwen3_family = {"qwen3", "Qwen3", "Qwen3ForCausalLM", read, write, names};

}  // namespace conclave
