#include "families/unsupported_keys.h"

#include <fmt/format.h>

#include <string>

namespace conclave {
namespace {

void refuse_unless_nothing(HuggingFaceKeys& keys, const char* key, const std::string& reason) {
  if (keys.absent(key) || is_nothing(keys.at(key))) return;
  keys.refuse(fmt::format("{} is {}, but {}.", key, keys.at(key).dump(), reason),
              fmt::format("Use a model without {}.", key));
}

}  // namespace

void check_supported(HuggingFaceKeys& keys) {
  if (keys.missing("hidden_act") || keys.at("hidden_act") != "swish")  // another name of silu
    keys.only("hidden_act", "silu", true, "this version has MLPs with silu only");
  keys.only("attention_dropout", 0, true, "this version has no attention dropout");
  if (!keys.missing("quantization_config"))
    keys.refuse("quantization_config is given, but this version does not read quantized models.",
                "Use the model's unquantized form.");
  keys.only("is_causal", true, true, "this version has causal attention only");
  keys.only("is_encoder_decoder", false, true, "this version trains decoders only");
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

}  // namespace conclave
