// Qwen2-MoE (Yang et al., "Qwen2 Technical Report", arXiv 2407.10671, section 2.2.2): a gated shared expert beside the
// routed ones, and biases of queries, keys and values.
#include "families/qwen2_moe.h"

#include <nlohmann/json.hpp>

#include "families/decoder_keys.h"
#include "families/parameter_names.h"
#include "families/qwen_keys.h"

namespace conclave {
namespace {

ModelConfig read(HuggingFaceKeys& keys) {
  ModelConfig config = read_decoder(keys, {.key_value_heads = 16, .max_position_embeddings = 32768});
  bool biased = true;
  keys.read_flag("qkv_bias", biased);
  for (LayerConfig& layer : config.layers) layer.attention.qkv_bias = biased;
  int64_t end_of_sliding = 28;
  keys.read_count("max_window_layers", end_of_sliding);
  read_switched_window(keys, config, [&](int64_t layer) { return layer % 2 == 0 && layer < end_of_sliding; });
  MixtureConfig mixture = read_softmax_mixture(keys, config);
  SharedExpertConfig shared{.gated = true};
  keys.read_required_size("shared_expert_intermediate_size", shared.intermediate);
  mixture.shared = shared;
  read_sparse_layers(keys, config, mixture);
  keys.finish();
  check_heads(keys, config);
  refuse_too_many_choices(keys, mixture, "num_experts");
  return config;
}

void write(const ModelConfig& config, nlohmann::json& written) {
  write_switched_window(config, written);
  write_sparse_layers(config, written);
  written.update({{"max_window_layers", config.layer_count()},
                  {"qkv_bias", config.layers.front().attention.qkv_bias},
                  {"shared_expert_intermediate_size", config.mixture()->shared->intermediate}});
}

std::vector<DiskNames> names(const ModelConfig& config) {
  return parameter_names(config, {.shared = "mlp.shared_expert"});
}

}  // namespace

const Family qwen2_moe_family = {"qwen2_moe", "Qwen2-MoE", "Qwen2MoeForCausalLM", read, write, names};

}  // namespace conclave
