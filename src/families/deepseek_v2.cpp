// DeepSeek-V2 (arXiv 2405.04434): latent attention, dense layers first, then mixtures with softmax scores that are not
// renormalized.
#include "families/deepseek_v2.h"

#include <nlohmann/json.hpp>

#include "families/decoder_keys.h"
#include "families/deepseek_mixture_keys.h"
#include "families/latent_keys.h"
#include "families/parameter_names.h"

namespace conclave {
namespace {

// Transformers looks at the groups only with this method, and renormalizes with none.
void read_choice(HuggingFaceKeys& keys, ModelConfig& config) {
  const bool grouped = !keys.missing("topk_method") && keys.at("topk_method") == "group_limited_greedy";
  if (!grouped)
    keys.only("topk_method", "greedy", true, "this version chooses the best experts, or those of the best groups");
  if (grouped) return;
  for (LayerConfig& layer : config.layers)
    if (auto* mixture = std::get_if<MixtureConfig>(&layer.mlp)) mixture->groups = mixture->chosen_groups = 1;
}

ModelConfig read(HuggingFaceKeys& keys) {
  ModelConfig config = read_decoder(keys, {.max_position_embeddings = 2048, .bos_token_id = 1, .eos_token_ids = {2}});
  config.rotary.interleaved = true;
  MixtureConfig mixture{.scores = MixtureConfig::Scores::softmax, .renormalize = false};
  mixture.group_score = MixtureConfig::GroupScore::best;
  keys.only("mlp_bias", false, true, "no block computes biases of dense MLPs");
  read_latent_attention(keys, config);
  read_deepseek_mixture(keys,
                        {.experts = 64,
                         .top_k = 2,
                         .intermediate = 1407,
                         .dense_intermediate = 11008,
                         .dense_layers = 0,
                         .shared_experts = 2},
                        mixture, config);
  read_choice(keys, config);
  keys.finish();
  return config;
}

void write(const ModelConfig& config, nlohmann::json& written) {
  write_latent_attention(config, written);
  write_deepseek_mixture(config, written);
  const bool grouped = config.mixture() != nullptr && config.mixture()->groups > 1;
  written["norm_topk_prob"] = false;
  written["topk_method"] = grouped ? "group_limited_greedy" : "greedy";
}

std::vector<DiskNames> names(const ModelConfig& config) {
  return parameter_names(config, {});
}

}  // namespace

const Family deepseek_v2_family = {"deepseek_v2", "DeepSeek-V2", "DeepseekV2ForCausalLM", read, write, names};

}  // namespace conclave
