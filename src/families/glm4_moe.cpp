// GLM-4.5 and its kin (arXiv 2508.06471): half of each head turns, queries and keys may have norms; dense layers first,
// then mixtures as DeepSeek-V3's.
#include "families/glm4_moe.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "families/decoder_keys.h"
#include "families/mixture_keys.h"
#include "families/parameter_names.h"

namespace conclave {
namespace {

ModelConfig read(HuggingFaceKeys& keys) {
  ModelConfig config = read_decoder(
      keys,
      {.key_value_heads = 8, .max_position_embeddings = 131072, .rms_norm_eps = 1e-5, .partial_rotary_factor = 0.5});
  bool biased = false, normed = false;
  keys.read_flag("attention_bias", biased);
  keys.read_flag("use_qk_norm", normed);
  for (LayerConfig& layer : config.layers) {
    layer.attention.qkv_bias = biased;
    layer.attention.qk_norm = normed ? AttentionConfig::QkNorm::per_head : AttentionConfig::QkNorm::none;
  }
  read_deepseek_mixture(keys, config, read_sigmoid_router(keys), {.dense_layers = 1});
  check_heads(keys, config);
  if (config.rotary.dims % 2 != 0 || config.rotary.dims == 0)
    keys.refuse(fmt::format("partial_rotary_factor leaves {} elements of each head to turn, but they turn in pairs.",
                            config.rotary.dims),
                "Use another partial_rotary_factor.");
  return config;
}

// Of which Transformers makes the same number of elements, truncating.
double partial_rotary_factor(const ModelConfig& config) {
  const auto head = static_cast<double>(config.layers.front().attention.head_dim);
  const double part = static_cast<double>(config.rotary.dims) / head;
  return static_cast<int64_t>(part * head) < config.rotary.dims ? std::nextafter(part, 1.0) : part;
}

void write(const ModelConfig& config, nlohmann::json& written) {
  const AttentionConfig& attention = config.layers.front().attention;
  write_deepseek_mixture(config, written);
  written["rope_parameters"]["partial_rotary_factor"] = partial_rotary_factor(config);
  written.update({{"attention_bias", attention.qkv_bias},
                  {"partial_rotary_factor", partial_rotary_factor(config)},
                  {"use_qk_norm", attention.qk_norm != AttentionConfig::QkNorm::none}});
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
                                /*has_prediction_modules=*/true};

}  // namespace conclave
