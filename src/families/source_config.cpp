#include "families/source_config.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>

#include "families/decoder_keys.h"
#include "families/family.h"

namespace conclave {
namespace {

using nlohmann::json;

// Keys that may differ: what is drawn, what training does, what generation does, and the vocabulary, which has rules of
// its own.
const std::set<std::string> free_keys = {"initializer_range",
                                         "router_aux_loss_coef",
                                         "router_jitter_noise",
                                         "max_position_embeddings",
                                         "bos_token_id",
                                         "eos_token_id",
                                         "pad_token_id",
                                         "vocab_size",
                                         "dtype",
                                         "torch_dtype"};

json facts_of(const ModelConfig& config) {
  json facts = json::parse(hugging_face_config_json(config, "float32"));
  for (const std::string& key : free_keys) facts.erase(key);
  if (config.rotary.scaling == RotaryConfig::Scaling::none) facts.erase("rope_parameters");  // rope_theta says it all
  return facts;
}

// What a dense model and one that its MLPs become experts of have in common.
json shared_facts_of(const ModelConfig& config) {
  const json all = facts_of(config);
  json facts;
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                          "rms_norm_eps", "rope_theta", "rope_parameters", "tie_word_embeddings"})
    if (all.contains(key)) facts[key] = all[key];
  const LayerConfig& layer = config.layers.front();
  facts["sliding_window"] = or_null(layer.attention.sliding_window);
  return facts;
}

// Experts that are copies of an MLP of `units` units, or pieces of it.
void check_experts_are_cut_from(HuggingFaceKeys& keys, int64_t units, const ModelConfig& model) {
  const MixtureConfig& mixture = *model.mixture();
  if (units % mixture.intermediate != 0) {
    keys.refuse(fmt::format("intermediate_size is {}, but that of model.config's experts is {} and must divide it.",
                            units, mixture.intermediate),
                "Use experts of as many units, or of a part of them.");
    return;
  }
  const int64_t pieces = units / mixture.intermediate;
  if (mixture.experts % pieces != 0 || mixture.top_k % pieces != 0)
    keys.refuse(
        fmt::format("intermediate_size is {}, of which an expert of model.config has one of {} parts, but {} experts "
                    "and {} choices are no whole copies.",
                    units, pieces, mixture.experts, mixture.top_k),
        fmt::format("Use multiples of {} for both.", pieces));
  const bool sums_to_one = mixture.scores != MixtureConfig::Scores::sigmoid && mixture.scaling_factor == 1 &&
                           (mixture.renormalize || mixture.scores == MixtureConfig::Scores::softmax_of_chosen);
  if (!sums_to_one)
    keys.refuse(
        "the weights of a token's experts do not sum to 1 in model.config: the model would not begin as the dense one.",
        "Use a softmax router whose weights are renormalized (norm_topk_prob), without a scaling factor.");
  if (mixture.shared || mixture.expert_biases || mixture.activation != MixtureConfig::Activation::swiglu)
    keys.refuse("model.config has shared experts, or experts that are no SwiGLU without biases.",
                "Upcycle to a family whose experts are.");
  for (const LayerConfig& layer : model.layers)
    if (const auto* dense = std::get_if<DenseMlpConfig>(&layer.mlp); dense != nullptr && dense->intermediate != units)
      keys.refuse(fmt::format("intermediate_size is {}, but that of a dense layer of model.config is {}.", units,
                              dense->intermediate),
                  fmt::format("Set it to {}.", units));
}

void compare(HuggingFaceKeys& keys, const json& has, const json& wanted) {
  for (const auto& [key, value] : has.items()) {
    const json& other = wanted.contains(key) ? wanted[key] : json();
    if (value != other)
      keys.refuse(fmt::format("{} is {}, but that of model.config is {}.", key, value.dump(), other.dump()),
                  fmt::format("Set {} to {} in model.config, or start from another model.", key, value.dump()));
  }
}

void compare_dense_source(HuggingFaceKeys& keys, const ModelConfig& source, const ModelConfig& model) {
  if (source.mixture() != nullptr) {
    keys.refuse(fmt::format("model_type is \"{}\", but model.upcycle_from takes a dense model.", source.family),
                "A model with experts goes on from its own weights with model.init_from.");
  } else if (model.mixture() == nullptr) {
    keys.refuse("model.upcycle_from is given, but model.config has no experts.",
                "Start from the dense model's weights with model.init_from.");
  } else {
    compare(keys, shared_facts_of(source), shared_facts_of(model));
    check_experts_are_cut_from(keys, std::get<DenseMlpConfig>(source.layers.front().mlp).intermediate, model);
    keys.finish();
    for (int64_t layer = 0; layer < model.layer_count(); ++layer)
      if (source.layers[layer].attention != model.layers[layer].attention)
        keys.refuse(fmt::format("the attention of layer {} differs from that of model.config.", layer),
                    "Start from another model.");
  }
}

void compare_vocabularies(HuggingFaceKeys& keys, const ModelSource& source, int64_t has, int64_t wanted) {
  if (!source.resize_vocabulary && has != wanted) {
    keys.refuse(
        fmt::format("vocab_size is {}, but that of model.config is {}.", has, wanted),
        fmt::format("Set vocab_size to {} in model.config, or set model.resize_vocabulary to {}.", has, wanted));
  } else if (wanted < has && !source.shrink_vocabulary) {
    keys.refuse(fmt::format("vocab_size is {}, but model.resize_vocabulary is {}, which would drop the last {} tokens.",
                            has, wanted, has - wanted),
                "Give a larger model.resize_vocabulary, or set model.shrink_vocabulary to true.");
  }
}

}  // namespace

int64_t check_source_config(const ModelSource& source, const ModelConfig& model) {
  const std::filesystem::path& folder = source.upcycle_from ? *source.upcycle_from : source.init_from.value();
  HuggingFaceKeys keys(read_config_text(folder, a_model_in_words()));
  const ModelConfig config = parse_model_config(keys);
  compare_vocabularies(keys, source, config.vocab_size, model.vocab_size);
  if (source.upcycle_from)
    compare_dense_source(keys, config, model);
  else
    compare(keys, facts_of(config), facts_of(model));
  keys.finish();
  return config.vocab_size;
}

}  // namespace conclave
