#include "families/mixture_keys.h"

#include <fmt/format.h>

#include <algorithm>

#include "families/decoder_keys.h"

namespace conclave {
namespace {

// Groups must divide the experts, and hold enough of them for a token's choices.
void check_groups(HuggingFaceKeys& keys, const MixtureConfig& mixture) {
  if (mixture.experts % mixture.groups != 0) {
    keys.refuse(
        fmt::format("n_routed_experts is {}, but n_group is {} and must divide it.", mixture.experts, mixture.groups),
        "Use a divisor of n_routed_experts.");
    return;
  }
  if (mixture.chosen_groups > mixture.groups)
    keys.refuse(
        fmt::format("topk_group is {}, but there are only {} groups (n_group).", mixture.chosen_groups, mixture.groups),
        fmt::format("Use at most {}.", mixture.groups));
  const int64_t eligible = mixture.experts / mixture.groups * mixture.chosen_groups;
  if (mixture.chosen_groups <= mixture.groups && mixture.top_k > eligible)
    keys.refuse(
        fmt::format("num_experts_per_tok is {}, but {} groups of {} experts have only {} (topk_group, n_group).",
                    mixture.top_k, mixture.chosen_groups, mixture.experts / mixture.groups, eligible),
        fmt::format("Use at most {}.", eligible));
}

}  // namespace

MixtureConfig read_sigmoid_router(HuggingFaceKeys& keys) {
  MixtureConfig mixture;
  mixture.scores = MixtureConfig::Scores::sigmoid;
  mixture.selection_bias = true;
  keys.read_flag("norm_topk_prob", mixture.renormalize);
  keys.only("scoring_func", "sigmoid", true, "this family's router has sigmoid scores");
  keys.only("topk_method", "noaux_tc", true, "this family chooses by groups with a selection bias");
  return mixture;
}

void read_deepseek_mixture(HuggingFaceKeys& keys, ModelConfig& config, MixtureConfig mixture,
                           const DeepseekMixtureDefaults& defaults) {
  mixture.groups = defaults.groups;
  mixture.chosen_groups = defaults.chosen_groups;
  mixture.scaling_factor = defaults.scaling_factor;
  int64_t shared = defaults.shared_experts, dense_layers = defaults.dense_layers;
  DenseMlpConfig dense;
  keys.read_required_size("n_routed_experts", mixture.experts);
  keys.read_required_size("num_experts_per_tok", mixture.top_k);
  keys.read_required_size("moe_intermediate_size", mixture.intermediate);
  if (!keys.missing("n_group")) keys.read_size("n_group", mixture.groups);
  if (!keys.missing("topk_group")) keys.read_size("topk_group", mixture.chosen_groups);
  keys.read_number("routed_scaling_factor", mixture.scaling_factor, 0, false);
  keys.read_size("n_shared_experts", shared);
  keys.read_count("first_k_dense_replace", dense_layers);
  keys.only("moe_layer_freq", 1, true, "this version has experts in every layer after the dense ones");
  if (dense_layers > 0)
    keys.read_required_size("intermediate_size", dense.intermediate);
  else
    keys.read_size("intermediate_size", dense.intermediate);  // of no layer
  keys.finish();

  refuse_too_many_choices(keys, mixture, "n_routed_experts");
  check_groups(keys, mixture);
  if (dense_layers >= config.layer_count())
    keys.refuse(fmt::format("first_k_dense_replace is {}, but there are only {} layers: none has experts.",
                            dense_layers, config.layer_count()),
                fmt::format("Use at most {}.", config.layer_count() - 1));
  mixture.shared = SharedExpertConfig{.intermediate = shared * mixture.intermediate};
  config.router_aux_loss_coef = 0;  // these families have no such loss
  for (int64_t layer = 0; layer < config.layer_count(); ++layer) {
    if (layer < dense_layers)
      config.layers[layer].mlp = dense;
    else
      config.layers[layer].mlp = mixture;
  }
}

void write_deepseek_mixture(const ModelConfig& config, nlohmann::json& written) {
  const MixtureConfig& mixture = *config.mixture();
  const auto* dense = std::get_if<DenseMlpConfig>(&config.layers.front().mlp);
  written.update({{"first_k_dense_replace", config.mixture_layers().front()},
                  {"intermediate_size", dense != nullptr ? dense->intermediate : mixture.intermediate},
                  {"moe_intermediate_size", mixture.intermediate},
                  {"n_group", mixture.groups},
                  {"n_routed_experts", mixture.experts},
                  {"n_shared_experts", mixture.shared->intermediate / mixture.intermediate},
                  {"norm_topk_prob", mixture.renormalize},
                  {"num_experts_per_tok", mixture.top_k},
                  {"routed_scaling_factor", mixture.scaling_factor},
                  {"topk_group", mixture.chosen_groups}});
}

}  // namespace conclave
