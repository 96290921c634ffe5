// GLM-4-MoE (GLM-4.5, arXiv 2508.06471): heads of which a part turns, and DeepSeek-V3's mixtures.
#include "families/glm4_moe.h"

#include <nlohmann/json.hpp>

#include "families/decoder_keys.h"
#include "families/mixture_keys.h"
#include "families/parameter_names.h"

namespace conclave {
namespace {

// In rope_parameters, or beside them.
void read_turned_part(HuggingFaceKeys& keys, ModelConfig& config) {
  double part = 0.5;
  keys.read_number("partial_rotary_factor", part, 0, false);
  if (config.layers.empty() || config.rotary.dims != config.layers.front().attention.head_dim) return;
  config.rotary.dims = static_cast<int64_t>(static_cast<double>(config.rotary.dims) * part);
}

ModelConfig read(HuggingFaceKeys& keys) {
  ModelConfig config =
      read_decoder(keys, {.key_value_heads = 8, .max_position_embeddings = 131072, .rms_norm_eps = 1e-5});
  read_turned_part(keys, config);
  bool biased = false, normed = false;
  keys.read_flag("attention_bias", biased);
  keys.read_flag("use_qk_norm", normed);
  for (LayerConfig& layer : config.layers) {
    layer.attention.qkv_bias = biased;
    if (normed) layer.attention.qk_norm = AttentionConfig::QkNorm::per_head;
  }
  read_deepseek_mixture(keys, config, read_sigmoid_router(keys), {.dense_layers = 1});
  check_heads(keys, config);
  return config;
}

void write(const ModelConfig& config, nlohmann::json& written) {
  const AttentionConfig& attention = config.layers.front().attention;
  const double part = static_cast<double>(config.rotary.dims) / static_cast<double>(attention.head_dim);
  write_deepseek_mixture(config, written);
  written["rope_parameters"]["partial_rotary_factor"] = part;
  written.update({{"attention_bias", attention.qkv_bias},
                  {"partial_rotary_factor", part},
                  {"use_qk_norm", attention.qk_norm == AttentionConfig::QkNorm::per_head}});
}

std::vector<DiskNames> names(const ModelConfig& config) {
  return parameter_names(config, {});
}

}  // namespace

const Family glm4_moe_family = {"glm4_moe",
                                "GLM-4-MoE",
                                "Glm4MoeForCausalLM",
                                read,
                                write,
                                names,
                                /*has_prediction_modules=*/true,
                                /*turns_parts_of_heads=*/true};

}  // namespace conclave
