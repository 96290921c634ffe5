#include "families/latent_keys.h"

#include <fmt/format.h>

#include <cmath>

#include "families/decoder_keys.h"

namespace conclave {
namespace {

// Transformers' yarn_apply_mscale: a scaled rotary embedding sharpens the scores.
double sharpened(const RotaryConfig& rotary, double scale) {
  if (rotary.scaling == RotaryConfig::Scaling::none || rotary.mscale_all_dim.value_or(0) == 0) return scale;
  const double mscale = rotary.factor <= 1 ? 1.0 : 0.1 * *rotary.mscale_all_dim * std::log(rotary.factor) + 1.0;
  return scale * mscale * mscale;
}

}  // namespace

void read_latent_attention(HuggingFaceKeys& keys, ModelConfig& config) {
  LatentAttentionConfig latent{
      .q_lora_rank = 1536, .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64};
  int64_t value_head_dim = 128;
  if (!keys.absent("q_lora_rank") && keys.missing("q_lora_rank"))
    latent.q_lora_rank = 0;
  else
    keys.read_size("q_lora_rank", latent.q_lora_rank);
  keys.read_size("kv_lora_rank", latent.kv_lora_rank);
  keys.read_size("qk_nope_head_dim", latent.qk_nope_head_dim);
  keys.read_size("qk_rope_head_dim", latent.qk_rope_head_dim);
  keys.read_size("v_head_dim", value_head_dim);
  keys.only("attention_bias", false, true, "this version's latent attention has no biases");
  if (latent.qk_rope_head_dim % 2 != 0)
    keys.refuse(
        fmt::format("qk_rope_head_dim is {}, but the rotary embedding turns pairs of elements, so it must be even.",
                    latent.qk_rope_head_dim),
        "Use an even one.");
  config.rotary.dims = latent.qk_rope_head_dim;
  for (LayerConfig& layer : config.layers) {
    AttentionConfig& attention = layer.attention;
    attention.head_dim = latent.qk_nope_head_dim + latent.qk_rope_head_dim;
    attention.value_head_dim = value_head_dim;
    const double by_width = 1 / std::sqrt(static_cast<double>(attention.head_dim));
    const double scale = sharpened(config.rotary, by_width);
    if (scale != by_width) attention.score_scale = scale;
    attention.latent = latent;
    if (attention.key_value_heads != attention.heads)
      keys.refuse(fmt::format("num_key_value_heads is {}, but latent attention has one for each of {} heads.",
                              attention.key_value_heads, attention.heads),
                  fmt::format("Set it to {}.", attention.heads));
  }
}

void write_latent_attention(const ModelConfig& config, nlohmann::json& written) {
  const AttentionConfig& attention = config.layers.front().attention;
  const LatentAttentionConfig& latent = *attention.latent;
  written.update({{"attention_bias", false},
                  {"head_dim", latent.qk_rope_head_dim},
                  {"kv_lora_rank", latent.kv_lora_rank},
                  {"q_lora_rank", latent.q_lora_rank > 0 ? nlohmann::json(latent.q_lora_rank) : nlohmann::json()},
                  {"qk_head_dim", attention.head_dim},
                  {"qk_nope_head_dim", latent.qk_nope_head_dim},
                  {"qk_rope_head_dim", latent.qk_rope_head_dim},
                  {"v_head_dim", attention.value_head_dim}});
}

}  // namespace conclave
