// Mistral (Jiang et al., "Mistral 7B", arXiv 2310.06825): dense, with a sliding window in all layers or in none.
#include "families/mistral.h"

#include <nlohmann/json.hpp>

#include "families/decoder_keys.h"
#include "families/parameter_names.h"

namespace conclave {
namespace {

ModelConfig read(HuggingFaceKeys& keys) {
  ModelConfig config = read_decoder(
      keys, {.key_value_heads = 8, .max_position_embeddings = 131072, .bos_token_id = 1, .eos_token_ids = {2}});
  read_window_of_all_layers(keys, config, /*by_default=*/4096);
  for (const char* bias : {"attention_bias", "mlp_bias"}) keys.only(bias, false, true, "a Mistral has no such biases");
  read_dense_mlps(keys, config);
  keys.finish();
  check_heads(keys, config);
  return config;
}

void write(const ModelConfig& config, nlohmann::json& written) {
  written.update({{"intermediate_size", std::get<DenseMlpConfig>(config.layers.front().mlp).intermediate},
                  {"sliding_window", or_null(config.layers.front().attention.sliding_window)}});
}

std::vector<DiskNames> names(const ModelConfig& config) {
  return parameter_names(config, {});
}

}  // namespace

const Family mistral_family = {"mistral", "Mistral", "MistralForCausalLM", read, write, names};

}  // namespace conclave
