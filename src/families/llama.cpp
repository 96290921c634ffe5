// Llama (Touvron et al., "Llama 2", arXiv 2307.09288; Grattafiori et al., "The Llama 3 Herd of Models", arXiv
// 2407.21783): dense.
#include "families/llama.h"

#include <nlohmann/json.hpp>

#include "families/decoder_keys.h"
#include "families/parameter_names.h"

namespace conclave {
namespace {

ModelConfig read(HuggingFaceKeys& keys) {
  ModelConfig config = read_decoder(keys, {.bos_token_id = 1, .eos_token_ids = {2}});
  read_attention_bias(keys, config);
  keys.only("mlp_bias", false, true, "no block computes biases of dense MLPs");
  read_dense_mlps(keys, config);
  keys.finish();
  check_heads(keys, config);
  return config;
}

void write(const ModelConfig& config, nlohmann::json& written) {
  written.update({{"attention_bias", config.layers.front().attention.qkv_bias},
                  {"intermediate_size", std::get<DenseMlpConfig>(config.layers.front().mlp).intermediate},
                  {"mlp_bias", false}});
}

std::vector<DiskNames> names(const ModelConfig& config) {
  return parameter_names(config, {});
}

}  // namespace

const Family llama_family = {"llama", "Llama", "LlamaForCausalLM", read, write, names};

}  // namespace conclave
