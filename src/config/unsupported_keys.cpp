#include "config/unsupported_keys.h"

#include <fmt/format.h>

#include <string>

namespace conclave {
namespace {

using nlohmann::json;

// Null, false, 0, "", [] and {}: what Python takes for no.
bool is_nothing(const json& value) {
  return value.is_null() || value == false || value == 0 || value == "" || (value.is_structured() && value.empty());
}

void refuse_unless_nothing(HuggingFaceKeys& keys, const char* key, const std::string& reason) {
  if (keys.absent(key) || is_nothing(keys.at(key))) return;
  keys.refuse(fmt::format("{} is {}, but {}.", key, keys.at(key).dump(), reason),
              fmt::format("Use a model without {}.", key));
}

// The base that `parameters`, the group `name`, or the key rope_theta gives.
void read_rope_theta(HuggingFaceKeys& keys, const char* name, const json& parameters, double& theta) {
  const bool inner = parameters.contains("rope_theta");
  if (keys.absent("rope_theta") && !inner) return;
  const json& found = inner ? parameters["rope_theta"] : keys.at("rope_theta");
  if (found.is_number() && found > 0) {
    theta = found.get<double>();
  } else {
    keys.refuse(fmt::format("{}rope_theta is {}, but it must be a number above 0.",
                            inner ? fmt::format("{}.", name) : "", found.dump()),
                "");
  }
}

}  // namespace

void check_supported(HuggingFaceKeys& keys) {
  if (keys.missing("hidden_act") || keys.at("hidden_act") != "swish")  // another name of silu
    keys.only("hidden_act", "silu", true, "this version has experts with silu only");
  keys.only("attention_dropout", 0, true, "this version has no attention dropout");
  if (!keys.missing("quantization_config"))
    keys.refuse("quantization_config is given, but this version does not read quantized models.",
                "Use the model's unquantized form.");
  keys.only("is_causal", true, true, "this version has causal attention only");
  keys.only("is_encoder_decoder", false, true, "this version trains decoders only");
  keys.only("partial_rotary_factor", 1, true,
            "this version turns whole heads, as Transformers does whatever this key says");
  refuse_unless_nothing(keys, "attention_chunk_size", "this version has no chunked attention");
  refuse_unless_nothing(keys, "num_kv_shared_layers", "this version's layers share no keys and values");
  refuse_unless_nothing(keys, "num_mtp_layers", "this version predicts one token at a time");
  refuse_unless_nothing(keys, "per_layer_config", "this version's layers are all alike");
  for (const char* elsewhere : {"configuration_files", "transformers_weights"})
    refuse_unless_nothing(keys, elsewhere, "this version reads config.json, model.safetensors and its index only");
  for (const char* inner : {"text_config", "text_encoder", "decoder", "generator"})
    refuse_unless_nothing(keys, inner, "this version reads no model within another");
  refuse_unless_nothing(keys, "attribute_map", "no key may change the meaning of others");
}

void check_layers_are_alike(HuggingFaceKeys& keys, const ModelConfig& config) {
  keys.only_for_each_layer("layer_types", config.num_hidden_layers,
                           config.sliding_window ? "sliding_attention" : "full_attention");
  keys.only_for_each_layer("mlp_layer_types", config.num_hidden_layers, "sparse");
}

// As PreTrainedConfig.convert_rope_params_to_dict of Transformers 5: rope_scaling, unless it says nothing, replaces
// rope_parameters; a base in the group goes before the key rope_theta, which goes before the class's default; rope_type
// goes before type, its older name.
void read_rope(HuggingFaceKeys& keys, double& theta) {
  const bool has_parameters = !keys.missing("rope_parameters");
  const bool has_scaling = !keys.missing("rope_scaling") && !is_nothing(keys.at("rope_scaling"));
  const char* name = has_scaling ? "rope_scaling" : "rope_parameters";
  const json parameters = has_scaling || has_parameters ? keys.at(name) : json::object();
  if (!parameters.is_object()) {
    keys.refuse(fmt::format("{} is {}, but it must be an object.", name, parameters.dump()), "");
    return;
  }
  read_rope_theta(keys, name, parameters, theta);
  const char* type_key = parameters.contains("rope_type") ? "rope_type" : "type";
  const json type = parameters.value(type_key, json("default"));
  if (type != "default") {
    keys.refuse(fmt::format("{}.{} is {}, but this version has the default rotary embedding only.", name, type_key,
                            type.dump()),
                "Use a model whose rope_type is \"default\".");
    return;
  }
  for (const auto& [key, value] : parameters.items()) {
    if (key == "rope_theta" || key == "rope_type" || key == "type" || value.is_null()) continue;
    if (key == "partial_rotary_factor" && value == 1) continue;
    keys.refuse(fmt::format("{}.{} is {}, but the default rotary embedding does not use it.", name, key, value.dump()),
                "Remove it if the model was trained without, or use a model whose rotary embedding is not scaled.");
  }
}

}  // namespace conclave
