// DeepSeek-V2 (arXiv 2405.04434): latent attention, and mixtures whose softmax router chooses within groups of experts
// that are as good as their best.
#include "families/deepseek_v2.h"

#include <nlohmann/json.hpp>

#include "families/decoder_keys.h"
#include "families/latent_keys.h"
#include "families/mixture_keys.h"
#include "families/parameter_names.h"

namespace conclave {
namespace {

// Transformers does not renormalize, whatever norm_topk_prob says.
MixtureConfig read_router(HuggingFaceKeys& keys) {
  MixtureConfig mixture;
  mixture.renormalize = false;
  mixture.group_score = MixtureConfig::GroupScore::best;
  keys.only("norm_topk_prob", false, true, "Transformers does not renormalize this family's weights");
  keys.only("scoring_func", "softmax", true, "this family's router has softmax scores");
  return mixture;
}

// "greedy" chooses among all experts, whatever n_group says.
bool chooses_by_groups(HuggingFaceKeys& keys) {
  if (keys.missing("topk_method") || keys.at("topk_method") == "greedy") return false;
  keys.only("topk_method", "group_limited_greedy", true,
            "this family chooses greedily, among all experts or by groups");
  return true;
}

ModelConfig read(HuggingFaceKeys& keys) {
  ModelConfig config = read_decoder(keys, {.max_position_embeddings = 2048, .bos_token_id = 1, .eos_token_ids = {2}});
  config.rotary.interleaved = true;
  keys.only("mlp_bias", false, true, "this version has MLPs without biases");
  read_latent_attention(keys, config);
  const bool by_groups = chooses_by_groups(keys);
  read_deepseek_mixture(keys, config, read_router(keys), {.shared_experts = 2});
  if (by_groups) return config;
  for (LayerConfig& layer : config.layers)
    if (auto* mixture = std::get_if<MixtureConfig>(&layer.mlp)) mixture->groups = mixture->chosen_groups = 1;
  return config;
}

void write(const ModelConfig& config, nlohmann::json& written) {
  write_latent_attention(config, written);
  write_deepseek_mixture(config, written);
  written["mlp_bias"] = false;
  written["topk_method"] = config.mixture()->groups > 1 ? "group_limited_greedy" : "greedy";
}

std::vector<DiskNames> names(const ModelConfig& config) {
  return parameter_names(config, {});
}

}  // namespace

const Family deepseek_v2_family = {"deepseek_v2", "DeepSeek-V2", "DeepseekV2ForCausalLM", read, write, names};

}  // namespace conclave
