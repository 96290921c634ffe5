// Mixtral (Jiang et al., "Mixtral of Experts", arXiv 2401.04088): every layer a mixture with a softmax router.
#include "families/mixtral.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "families/decoder_keys.h"
#include "families/parameter_names.h"

namespace conclave {
namespace {

// num_experts is Transformers' newer name of num_local_experts, and goes before it.
void read_experts(HuggingFaceKeys& keys, int64_t& experts) {
  if (keys.missing("num_experts")) {
    keys.read_required_size("num_local_experts", experts);
  } else {
    keys.read_size("num_local_experts", experts);
    keys.read_size("num_experts", experts);
  }
}

ModelConfig read(HuggingFaceKeys& keys) {
  ModelConfig config = read_decoder(keys, {.key_value_heads = 8,
                                           .max_position_embeddings = 131072,
                                           .rms_norm_eps = 1e-5,
                                           .rope_theta = 1e6,
                                           .bos_token_id = 1,
                                           .eos_token_ids = {2}});
  read_window_of_all_layers(keys, config, std::nullopt);
  MixtureConfig mixture;
  keys.read_required_size("intermediate_size", mixture.intermediate);
  read_experts(keys, mixture.experts);
  keys.read_required_size("num_experts_per_tok", mixture.top_k);
  keys.read_number("router_aux_loss_coef", config.router_aux_loss_coef, 0, true);
  keys.read_number("router_jitter_noise", config.router_jitter_noise, 0, true);
  keys.only_for_each_layer("mlp_layer_types", config.layer_count(), "sparse");
  keys.finish();

  check_heads(keys, config);
  refuse_too_many_choices(keys, mixture, "num_local_experts");
  if (config.router_jitter_noise >= 1)
    keys.refuse(fmt::format("router_jitter_noise is {}, but it must be less than 1.", config.router_jitter_noise), "");
  for (LayerConfig& layer : config.layers) layer.mlp = mixture;
  return config;
}

void write(const ModelConfig& config, nlohmann::json& written) {
  const MixtureConfig& mixture = *config.mixture();
  written.update({{"intermediate_size", mixture.intermediate},
                  {"num_experts_per_tok", mixture.top_k},
                  {"num_local_experts", mixture.experts},
                  {"output_router_logits", false},
                  {"router_aux_loss_coef", config.router_aux_loss_coef},
                  {"router_jitter_noise", config.router_jitter_noise},
                  {"sliding_window", or_null(config.layers.front().attention.sliding_window)}});
}

std::vector<DiskNames> names(const ModelConfig& config) {
  return parameter_names(config, {.router = "block_sparse_moe.gate",
                                  .experts = "block_sparse_moe.experts",
                                  .gate = "w1",
                                  .up = "w3",
                                  .down = "w2"});
}

}  // namespace

const Family mixtral_family = {"mixtral", "Mixtral", "MixtralForCausalLM", read, write, names};

}  // namespace conclave
