#include "apps/starter_model.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "families/family.h"

namespace conclave {
namespace {

// Depth and width grow together, and learning rates fall with width, as in published models of these sizes (OLMoE-1B-7B
// 4e-4 at width 2048; the quickstart's model 2e-3 at width 256).
const std::vector<StarterSize> sizes = {
    {.name = "tiny",
     .meant_for = "minutes on a few cores",
     .layers = 4,
     .hidden = 256,
     .heads = 8,
     .key_value_heads = 4,
     .head_dim = 32,
     .intermediate = 768,
     .experts = 8,
     .expert_intermediate = 384,
     .top_k = 2,
     .sequence_length = 256,
     .micro_batch_size = 4,
     .lr = 2e-3},
    {.name = "small",
     .meant_for = "hours on a few cores, minutes on a GPU",
     .layers = 8,
     .hidden = 512,
     .heads = 8,
     .key_value_heads = 4,
     .head_dim = 64,
     .intermediate = 1536,
     .experts = 8,
     .expert_intermediate = 768,
     .top_k = 2,
     .sequence_length = 512,
     .micro_batch_size = 4,
     .lr = 1e-3},
    {.name = "medium",
     .meant_for = "days on one GPU",
     .layers = 16,
     .hidden = 1024,
     .heads = 16,
     .key_value_heads = 8,
     .head_dim = 64,
     .intermediate = 2816,
     .experts = 32,
     .expert_intermediate = 704,
     .top_k = 4,
     .sequence_length = 2048,
     .micro_batch_size = 4,
     .lr = 6e-4},
    {.name = "large",
     .meant_for = "weeks on 8 GPUs or more",
     .layers = 24,
     .hidden = 2048,
     .heads = 16,
     .key_value_heads = 4,
     .head_dim = 128,
     .intermediate = 6144,
     .experts = 64,
     .expert_intermediate = 1024,
     .top_k = 8,
     .sequence_length = 4096,
     .micro_batch_size = 1,
     .lr = 4e-4},
};

// What the families that have these keys need; the others pass over them.
nlohmann::json keys_of(std::string_view model_type, const StarterSize& size, int64_t vocab_size,
                       std::optional<int64_t> eos) {
  nlohmann::json keys = {
      {"model_type", model_type},
      {"vocab_size", vocab_size},
      {"hidden_size", size.hidden},
      {"num_hidden_layers", size.layers},
      {"num_attention_heads", size.heads},
      {"head_dim", size.head_dim},
      {"intermediate_size", size.intermediate},
      {"max_position_embeddings", 4 * size.sequence_length},
      {"sliding_window", nullptr},
      {"tie_word_embeddings", false},
      {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 10000.0}}},
      {"bos_token_id", nullptr},
      {"eos_token_id", eos ? nlohmann::json(*eos) : nlohmann::json()},
      {"pad_token_id", nullptr},
      // mixtures
      {"num_local_experts", size.experts},
      {"num_experts", size.experts},
      {"n_routed_experts", size.experts},
      {"num_experts_per_tok", size.top_k},
      {"moe_intermediate_size", size.expert_intermediate},
      {"shared_expert_intermediate_size", size.expert_intermediate},
      {"n_shared_experts", 1},
      {"first_k_dense_replace", 1},
      {"n_group", 1},
      {"topk_group", 1},
      // latent attention
      {"q_lora_rank", size.hidden / 2},
      {"kv_lora_rank", size.hidden / 4},
      {"qk_nope_head_dim", size.head_dim},
      {"qk_rope_head_dim", size.head_dim / 2},
      {"v_head_dim", size.head_dim},
  };
  return keys;
}

}  // namespace

const std::vector<StarterSize>& starter_sizes() {
  return sizes;
}

std::vector<std::string> names_of_sizes() {
  std::vector<std::string> names;
  for (const StarterSize& size : sizes) names.emplace_back(size.name);
  return names;
}

const StarterSize& starter_size(std::string_view name) {
  const auto found = std::find_if(sizes.begin(), sizes.end(), [&](const StarterSize& one) { return one.name == name; });
  check_invariant(found != sizes.end(), "{} is a size", name);
  return *found;
}

ModelConfig starter_model(std::string_view model_type, const StarterSize& size, int64_t vocab_size,
                          std::optional<int64_t> eos) {
  nlohmann::json keys = keys_of(model_type, size, vocab_size, eos);
  const std::string origin = "the config.json of a new model";
  // Latent attention has keys and values for each head, and refuses any other number; without the key all have as many.
  ModelConfig config = parse_model_config(keys.dump(), origin);
  if (!config.layers.front().attention.latent) {
    keys["num_key_value_heads"] = size.key_value_heads;
    config = parse_model_config(keys.dump(), origin);
  }
  // Some families have the size of an expert under the key that is a dense layer's in others.
  for (LayerConfig& layer : config.layers)
    if (auto* mixture = std::get_if<MixtureConfig>(&layer.mlp)) mixture->intermediate = size.expert_intermediate;
  return config;
}

}  // namespace conclave
