#include "config/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace conclave {
namespace {}

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
    if (layer.mixture() != nullptr && *layer.mixture() != *config.mixture())
      found.emplace_back("mixtures that differ from layer to layer");
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

}  // namespace conclave
