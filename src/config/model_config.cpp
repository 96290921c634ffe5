#include "config/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace conclave {
namespace {

void look_at(const MixtureConfig& mixture, std::vector<std::string>& found) {
  if (mixture.scores == MixtureConfig::Scores::softmax_of_chosen)
    found.emplace_back("a softmax over the chosen experts");
  if (mixture.groups > 1 && mixture.group_score != MixtureConfig::GroupScore::sum_of_two_best)
    found.emplace_back("groups of experts that are as good as their best");
  if (mixture.selection_bias) found.emplace_back("a selection bias that is part of the model");
  if (mixture.router_bias) found.emplace_back("a bias of the router");
  if (mixture.expert_biases) found.emplace_back("biases of the experts");
  if (mixture.input_major) found.emplace_back("experts whose matrices lie by rows of inputs");
  if (mixture.activation != MixtureConfig::Activation::swiglu) found.emplace_back("experts with a clamped activation");
  if (mixture.shared) found.emplace_back("shared experts");
}

}  // namespace

double yarn_scale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

double RotaryConfig::cosine_factor() const {
  if (scaling != Scaling::yarn) return 1;
  if (attention_factor) return *attention_factor;
  return mscale && mscale_all_dim ? yarn_scale(factor, *mscale) / yarn_scale(factor, *mscale_all_dim)
                                  : yarn_scale(factor);
}

const MixtureConfig* ModelConfig::mixture() const {
  for (const LayerConfig& layer : layers)
    if (layer.mixture() != nullptr) return layer.mixture();
  return nullptr;
}

std::vector<int64_t> ModelConfig::mixture_layers() const {
  std::vector<int64_t> found;
  for (int64_t layer = 0; layer < layer_count(); ++layer)
    if (layers[layer].mixture() != nullptr) found.push_back(layer);
  return found;
}

std::vector<std::string> unit_names(const ModelConfig& config) {
  std::vector<std::string> names = {"embedding"};
  for (int64_t layer = 0; layer < config.layer_count(); ++layer) names.push_back(fmt::format("layers.{}", layer));
  names.emplace_back("head");
  return names;
}

std::vector<std::string> not_computed(const ModelConfig& config) {
  std::vector<std::string> found;
  for (const LayerConfig& layer : config.layers) {
    if (layer.mixture() != nullptr) look_at(*layer.mixture(), found);
    if (layer.mixture() != nullptr && *layer.mixture() != *config.mixture())
      found.emplace_back("mixtures that differ from layer to layer");
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

}  // namespace conclave
