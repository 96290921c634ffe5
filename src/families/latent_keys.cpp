#include "families/latent_keys.h"

#include <fmt/format.h>

#include <cmath>

namespace conclave {
namespace {

// An absent key is the class's default, null means that queries have no latent.
void read_query_rank(HuggingFaceKeys& keys, int64_t& rank) {
  rank = keys.absent("q_lora_rank") ? 1536 : 0;
  keys.read_size("q_lora_rank", rank);
}

// As yarn_apply_mscale of Transformers' modeling_deepseek_v3.py.
std::optional<double> score_scale(const RotaryConfig& rotary, int64_t head_dim) {
  if (rotary.scaling == RotaryConfig::Scaling::none || !rotary.mscale_all_dim) return {};
  const double scale = yarn_scale(rotary.factor, *rotary.mscale_all_dim);
  return scale * scale / std::sqrt(static_cast<double>(head_dim));
}

}  // namespace

void read_latent_attention(HuggingFaceKeys& keys, ModelConfig& config) {
  LatentAttentionConfig latent{.q_lora_rank = 0, .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64};
  int64_t value_dim = 128;
  bool biased = false;
  read_query_rank(keys, latent.q_lora_rank);
  keys.read_size("kv_lora_rank", latent.kv_lora_rank);
  keys.read_size("qk_nope_head_dim", latent.qk_nope_head_dim);
  keys.read_size("qk_rope_head_dim", latent.qk_rope_head_dim);
  keys.read_size("v_head_dim", value_dim);
  keys.read_flag("attention_bias", biased);
  if (latent.qk_rope_head_dim % 2 != 0)
    keys.refuse(fmt::format("qk_rope_head_dim is {}, but the rotary embedding turns pairs of elements.",
                            latent.qk_rope_head_dim),
                "Use an even qk_rope_head_dim.");
  config.rotary.dims = latent.qk_rope_head_dim;  // whatever head_dim says, as in Transformers
  for (LayerConfig& layer : config.layers) {
    AttentionConfig& attention = layer.attention;
    if (attention.key_value_heads != attention.heads)
      keys.refuse(fmt::format("num_key_value_heads is {}, but with latent attention each of the {} heads has keys and "
                              "values of its own.",
                              attention.key_value_heads, attention.heads),
                  "Leave the key away.");
    attention.key_value_heads = attention.heads;
    attention.head_dim = latent.qk_nope_head_dim + latent.qk_rope_head_dim;
    attention.value_head_dim = value_dim;
    attention.qkv_bias = attention.output_bias = biased;
    attention.score_scale = score_scale(config.rotary, attention.head_dim);
    attention.latent = latent;
    keys.finish();  // all layers are alike
  }
}

void write_latent_attention(const ModelConfig& config, nlohmann::json& written) {
  const AttentionConfig& attention = config.layers.front().attention;
  const LatentAttentionConfig& latent = *attention.latent;
  written.update({{"attention_bias", attention.output_bias},
                  {"head_dim", latent.qk_rope_head_dim},
                  {"kv_lora_rank", latent.kv_lora_rank},
                  {"q_lora_rank", latent.q_lora_rank > 0 ? nlohmann::json(latent.q_lora_rank) : nlohmann::json()},
                  {"qk_nope_head_dim", latent.qk_nope_head_dim},
                  {"qk_rope_head_dim", latent.qk_rope_head_dim},
                  {"v_head_dim", attention.value_head_dim}});
}

}  // namespace conclave
