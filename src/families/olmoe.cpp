// OLMoE (Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models", arXiv 2409.02060): queries and keys are
// normed over their whole projection, and the weights of a token's experts do not sum to one.
#include "families/olmoe.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "families/decoder_keys.h"
#include "families/parameter_names.h"

namespace conclave {
namespace {

ModelConfig read(HuggingFaceKeys& keys) {
  ModelConfig config = read_decoder(
      keys, {.max_position_embeddings = 4096, .rms_norm_eps = 1e-5, .eos_token_ids = {50279}, .pad_token_id = 1});
  for (LayerConfig& layer : config.layers) layer.attention.qk_norm = AttentionConfig::QkNorm::whole_projection;
  read_attention_bias(keys, config);
  if (!keys.missing("clip_qkv"))
    keys.refuse(fmt::format("clip_qkv is {}, but no block clips queries, keys and values.", keys.at("clip_qkv").dump()),
                "Use a model whose clip_qkv is null.");
  MixtureConfig mixture;
  mixture.renormalize = false;
  config.router_aux_loss_coef = 0.01;
  keys.read_required_size("intermediate_size", mixture.intermediate);
  keys.read_required_size(keys.missing("num_experts") ? "num_local_experts" : "num_experts", mixture.experts);
  keys.read_required_size("num_experts_per_tok", mixture.top_k);
  keys.read_flag("norm_topk_prob", mixture.renormalize);
  keys.read_number("router_aux_loss_coef", config.router_aux_loss_coef, 0, true);
  keys.finish();
  check_heads(keys, config);
  refuse_too_many_choices(keys, mixture, "num_experts");
  for (LayerConfig& layer : config.layers) layer.mlp = mixture;
  return config;
}

void write(const ModelConfig& config, nlohmann::json& written) {
  const MixtureConfig& mixture = *config.mixture();
  written.update({{"attention_bias", config.layers.front().attention.qkv_bias},
                  {"clip_qkv", nullptr},
                  {"intermediate_size", mixture.intermediate},
                  {"norm_topk_prob", mixture.renormalize},
                  {"num_experts", mixture.experts},
                  {"num_experts_per_tok", mixture.top_k},
                  {"output_router_logits", false},
                  {"router_aux_loss_coef", config.router_aux_loss_coef}});
}

std::vector<DiskNames> names(const ModelConfig& config) {
  return parameter_names(config, {});
}

}  // namespace

const Family olmoe_family = {"olmoe", "OLMoE", "OlmoeForCausalLM", read, write, names};

}  // namespace conclave
