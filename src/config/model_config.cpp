#include "config/model_config.h"

#include <fmt/format.h>

#include <algorithm>

namespace conclave {
namespace {

void look_at(const AttentionConfig& attention, std::vector<std::string>& found) {
  if (attention.qk_norm != AttentionConfig::QkNorm::none) found.emplace_back("norms of queries and keys");
  if (attention.qkv_bias) found.emplace_back("biases of the query, key and value projections");
  if (attention.output_bias) found.emplace_back("a bias of the attention's output projection");
  if (attention.sinks) found.emplace_back("attention sinks");
  if (attention.score_scale) found.emplace_back("attention scores with a scale of their own");
  if (attention.latent) found.emplace_back("latent attention");
  if (!attention.latent && attention.value_head_dim != attention.head_dim)
    found.emplace_back("values of another width than keys");
}

}  // namespace

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
  if (config.rotary.scaling != RotaryConfig::Scaling::none) found.emplace_back("a scaled rotary embedding");
  if (config.rotary.interleaved) found.emplace_back("a rotary embedding of neighbouring elements");
  for (const LayerConfig& layer : config.layers) {
    if (!layer.attention.latent && config.rotary.dims != layer.attention.head_dim)
      found.emplace_back("a rotary embedding of a part of each head");
    look_at(layer.attention, found);
    if (layer.mixture() != nullptr && *layer.mixture() != *config.mixture())
      found.emplace_back("mixtures that differ from layer to layer");
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

}  // namespace conclave
