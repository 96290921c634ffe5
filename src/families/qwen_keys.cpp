#include "families/qwen_keys.h"

#include <fmt/format.h>

#include <algorithm>

#include "families/decoder_keys.h"

namespace conclave {
namespace {

using nlohmann::json;

constexpr const char* sliding = "sliding_attention";
constexpr const char* full = "full_attention";

// The layers that mlp_only_layers names.
std::vector<int64_t> read_mlp_only_layers(HuggingFaceKeys& keys) {
  std::vector<int64_t> layers;
  if (keys.missing("mlp_only_layers")) return layers;
  const json& found = keys.at("mlp_only_layers");
  const bool fits = found.is_array() && std::all_of(found.begin(), found.end(), [](const json& layer) {
                      return layer.is_number_integer() && layer >= 0;
                    });
  if (fits) return found.get<std::vector<int64_t>>();
  keys.refuse(fmt::format("mlp_only_layers is {}, but it must be a list of layers' numbers.", found.dump()), "");
  return layers;
}

}  // namespace

void read_switched_window(HuggingFaceKeys& keys, ModelConfig& config, const std::function<bool(int64_t)>& by_default) {
  bool used = false;
  int64_t window = 4096;
  keys.read_flag("use_sliding_window", used);
  if (!keys.absent("sliding_window") && used) keys.read_size("sliding_window", window);  // unused, some files say 0
  if (used && !keys.absent("sliding_window") && keys.missing("sliding_window")) used = false;  // null: no window
  std::vector<bool> slides;
  for (int64_t layer = 0; layer < config.layer_count(); ++layer) slides.push_back(used && by_default(layer));
  if (!keys.missing("layer_types")) {
    const json& types = keys.at("layer_types");
    const bool fits = types.is_array() && static_cast<int64_t>(types.size()) == config.layer_count() &&
                      std::all_of(types.begin(), types.end(),
                                  [&](const json& type) { return type == full || (used && type == sliding); });
    if (!fits) {
      keys.refuse(fmt::format("layer_types is {}, but it must say \"{}\"{} for each of {} layers.", types.dump(), full,
                              used ? fmt::format(" or \"{}\"", sliding) : "", config.layer_count()),
                  used ? "" : "A sliding window wants use_sliding_window: true.");
      return;
    }
    for (size_t layer = 0; layer < types.size(); ++layer) slides[layer] = types[layer] == sliding;
  }
  for (int64_t layer = 0; layer < config.layer_count(); ++layer)
    if (slides[layer]) config.layers[layer].attention.sliding_window = window;
}

void write_switched_window(const ModelConfig& config, json& written) {
  json types = json::array();
  std::optional<int64_t> window;
  for (const LayerConfig& layer : config.layers) {
    types.push_back(layer.attention.sliding_window ? sliding : full);
    if (layer.attention.sliding_window) window = layer.attention.sliding_window;
  }
  written["layer_types"] = types;
  written["sliding_window"] = or_null(window);
  written["use_sliding_window"] = window.has_value();
}

MixtureConfig read_softmax_mixture(HuggingFaceKeys& keys, ModelConfig& config) {
  MixtureConfig mixture;
  mixture.renormalize = false;
  keys.read_required_size(keys.missing("num_experts") ? "num_local_experts" : "num_experts", mixture.experts);
  keys.read_required_size("num_experts_per_tok", mixture.top_k);
  keys.read_required_size("moe_intermediate_size", mixture.intermediate);
  keys.read_flag("norm_topk_prob", mixture.renormalize);
  keys.read_number("router_aux_loss_coef", config.router_aux_loss_coef, 0, true);
  return mixture;
}

void read_sparse_layers(HuggingFaceKeys& keys, ModelConfig& config, const MixtureConfig& mixture) {
  int64_t step = 1;
  DenseMlpConfig dense;
  keys.read_size("decoder_sparse_step", step);
  const std::vector<int64_t> dense_layers = read_mlp_only_layers(keys);
  const auto is_sparse = [&](int64_t layer) {
    return (layer + 1) % step == 0 && std::find(dense_layers.begin(), dense_layers.end(), layer) == dense_layers.end();
  };
  bool all_sparse = true;
  for (int64_t layer = 0; layer < config.layer_count(); ++layer) all_sparse = all_sparse && is_sparse(layer);
  if (all_sparse)
    keys.read_size("intermediate_size", dense.intermediate);  // of no layer
  else
    keys.read_required_size("intermediate_size", dense.intermediate);
  for (int64_t layer = 0; layer < config.layer_count(); ++layer) {
    if (is_sparse(layer))
      config.layers[layer].mlp = mixture;
    else
      config.layers[layer].mlp = dense;
  }
  if (!config.layers.empty() && config.mixture() == nullptr)
    keys.refuse("decoder_sparse_step and mlp_only_layers leave no layer with experts.",
                "Use the dense family of the same name.");
}

void write_sparse_layers(const ModelConfig& config, json& written) {
  const MixtureConfig& mixture = *config.mixture();
  json dense_layers = json::array();
  int64_t intermediate = mixture.intermediate;
  for (int64_t layer = 0; layer < config.layer_count(); ++layer) {
    const auto* dense = std::get_if<DenseMlpConfig>(&config.layers[layer].mlp);
    if (dense == nullptr) continue;
    dense_layers.push_back(layer);
    intermediate = dense->intermediate;
  }
  written.update({{"decoder_sparse_step", 1},
                  {"intermediate_size", intermediate},
                  {"mlp_only_layers", dense_layers},
                  {"moe_intermediate_size", mixture.intermediate},
                  {"norm_topk_prob", mixture.renormalize},
                  {"num_experts", mixture.experts},
                  {"num_experts_per_tok", mixture.top_k},
                  {"output_router_logits", false},
                  {"router_aux_loss_coef", config.router_aux_loss_coef}});
}

}  // namespace conclave
