#include "families/deepseek_mixture_keys.h"

#include <fmt/format.h>

#include <algorithm>

#include "families/decoder_keys.h"

namespace conclave {
namespace {

// Zero is allowed.
void read_count(HuggingFaceKeys& keys, const char* key, int64_t& count) {
  double number = static_cast<double>(count);
  keys.read_number(key, number, 0, true);
  count = static_cast<int64_t>(number);
  if (static_cast<double>(count) != number)
    keys.refuse(fmt::format("{} is {}, but it must be whole.", key, number), "");
}

void check_groups(HuggingFaceKeys& keys, const MixtureConfig& mixture) {
  if (mixture.experts % mixture.groups != 0)
    keys.refuse(
        fmt::format("n_routed_experts is {}, but n_group is {} and must divide it.", mixture.experts, mixture.groups),
        "");
  if (mixture.chosen_groups > mixture.groups)
    keys.refuse(
        fmt::format("topk_group is {}, but there are only {} groups (n_group).", mixture.chosen_groups, mixture.groups),
        "");
  keys.finish();
  const int64_t choices = mixture.chosen_groups * (mixture.experts / mixture.groups);
  if (mixture.top_k > choices)
    keys.refuse(
        fmt::format("num_experts_per_tok is {}, but the chosen groups have {} experts.", mixture.top_k, choices), "");
}

}  // namespace

void read_deepseek_mixture(HuggingFaceKeys& keys, const DeepseekMixtureDefaults& defaults, MixtureConfig mixture,
                           ModelConfig& config) {
  int64_t dense_layers = defaults.dense_layers, shared = defaults.shared_experts;
  DenseMlpConfig dense{defaults.dense_intermediate};
  mixture.experts = defaults.experts;
  mixture.top_k = defaults.top_k;
  mixture.intermediate = defaults.intermediate;
  mixture.groups = defaults.groups;
  mixture.chosen_groups = defaults.chosen_groups;
  mixture.scaling_factor = defaults.scaling_factor;
  keys.read_size("intermediate_size", dense.intermediate);
  keys.read_size("n_routed_experts", mixture.experts);
  keys.read_size("num_experts_per_tok", mixture.top_k);
  keys.read_size("moe_intermediate_size", mixture.intermediate);
  keys.read_size("n_group", mixture.groups);
  keys.read_size("topk_group", mixture.chosen_groups);
  keys.read_number("routed_scaling_factor", mixture.scaling_factor, 0, false);
  read_count(keys, "first_k_dense_replace", dense_layers);
  read_count(keys, "n_shared_experts", shared);
  keys.absent("num_nextn_predict_layers");  // further layers for generation, which Transformers' model does not have
  keys.finish();
  refuse_too_many_choices(keys, mixture, "n_routed_experts");
  check_groups(keys, mixture);
  if (shared > 0) mixture.shared = SharedExpertConfig{.intermediate = shared * mixture.intermediate, .gated = false};
  for (int64_t layer = 0; layer < config.layer_count(); ++layer) {
    if (layer < dense_layers)
      config.layers[layer].mlp = dense;
    else
      config.layers[layer].mlp = mixture;
  }
}

void write_deepseek_mixture(const ModelConfig& config, nlohmann::json& written) {
  int64_t dense_layers = 0;
  for (const LayerConfig& layer : config.layers) {
    if (layer.mixture() != nullptr) continue;
    ++dense_layers;
    written["intermediate_size"] = std::get<DenseMlpConfig>(layer.mlp).intermediate;
  }
  written["first_k_dense_replace"] = dense_layers;
  if (config.mixture() == nullptr) return;
  const MixtureConfig& mixture = *config.mixture();
  const int64_t shared = mixture.shared ? mixture.shared->intermediate / mixture.intermediate : 0;
  written.update({{"moe_intermediate_size", mixture.intermediate},
                  {"n_group", mixture.groups},
                  {"n_routed_experts", mixture.experts},
                  {"n_shared_experts", shared},
                  {"num_experts_per_tok", mixture.top_k},
                  {"routed_scaling_factor", mixture.scaling_factor},
                  {"topk_group", mixture.chosen_groups}});
}

}  // namespace conclave
