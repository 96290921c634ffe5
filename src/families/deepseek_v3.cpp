// DeepSeek-V3 (arXiv 2412.19437): latent attention, and mixtures whose sigmoid router has a selection bias.
#include "families/deepseek_v3.h"

#include <nlohmann/json.hpp>

#include "families/decoder_keys.h"
#include "families/latent_keys.h"
#include "families/mixture_keys.h"
#include "families/parameter_names.h"

namespace conclave {
namespace {

ModelConfig read(HuggingFaceKeys& keys) {
  ModelConfig config = read_decoder(keys, {.max_position_embeddings = 4096, .bos_token_id = 0, .eos_token_ids = {1}});
  config.rotary.interleaved = true;
  keys.read_flag("rope_interleave", config.rotary.interleaved);
  read_latent_attention(keys, config);
  read_deepseek_mixture(keys, config, read_sigmoid_router(keys),
                        {.groups = 8, .chosen_groups = 4, .dense_layers = 3, .scaling_factor = 2.5});
  return config;
}

void write(const ModelConfig& config, nlohmann::json& written) {
  write_latent_attention(config, written);
  write_deepseek_mixture(config, written);
  written["rope_interleave"] = config.rotary.interleaved;
}

std::vector<DiskNames> names(const ModelConfig& config) {
  return parameter_names(config, {});
}

}  // namespace

const Family deepseek_v3_family = {"deepseek_v3",
                                   "DeepSeek-V3",
                                   "DeepseekV3ForCausalLM",
                                   read,
                                   write,
                                   names,
                                   /*has_prediction_modules=*/true};

}  // namespace conclave
