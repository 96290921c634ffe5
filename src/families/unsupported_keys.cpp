#include "families/unsupported_keys.h"

#include <fmt/format.h>

#include <string>

namespace conclave {
namespace {

using nlohmann::json;

void refuse_unless_nothing(HuggingFaceKeys& keys, const char* key, const std::string& reason) {
  if (keys.absent(key) || is_nothing(keys.at(key))) return;
  keys.refuse(fmt::format("{} is {}, but {}.", key, keys.at(key).dump(), reason),
              fmt::format("Use a model without {}.", key));
}

// Of a model that is stored in few bits: what checkpoint/quantized_tensor.h reads.
void check_quantization(HuggingFaceKeys& keys) {
  if (keys.missing("quantization_config")) return;
  const json& found = keys.at("quantization_config");
  const json method = found.is_object() ? found.value("quant_method", json()) : json();
  if (method != "mxfp4" && method != "fp8") {
    keys.refuse(
        fmt::format("quantization_config.quant_method is {}, but this version reads \"mxfp4\" and \"fp8\" only.",
                    method.dump()),
        "Use the model's unquantized form.");
    return;
  }
  const json blocks = found.value("weight_block_size", json::array({128, 128}));
  if (method == "fp8" && blocks != json::array({128, 128}))
    keys.refuse(fmt::format("quantization_config.weight_block_size is {}, but this version reads [128, 128] only.",
                            blocks.dump()),
                "Use the model's unquantized form.");
}

}  // namespace

void refuse_prediction_modules(HuggingFaceKeys& keys) {
  refuse_unless_nothing(keys, "num_mtp_layers", "this version predicts one token at a time");
}

void check_supported(HuggingFaceKeys& keys) {
  if (keys.missing("hidden_act") || keys.at("hidden_act") != "swish")  // another name of silu
    keys.only("hidden_act", "silu", true, "this version has MLPs with silu only");
  keys.only("attention_dropout", 0, true, "this version has no attention dropout");
  check_quantization(keys);
  keys.only("is_causal", true, true, "this version has causal attention only");
  keys.only("is_encoder_decoder", false, true, "this version trains decoders only");
  refuse_unless_nothing(keys, "attention_chunk_size", "this version has no chunked attention");
  refuse_unless_nothing(keys, "num_kv_shared_layers", "this version's layers share no keys and values");
  refuse_unless_nothing(keys, "per_layer_config", "this version's layers are all alike");
  for (const char* elsewhere : {"configuration_files", "transformers_weights"})
    refuse_unless_nothing(keys, elsewhere, "this version reads config.json, model.safetensors and its index only");
  for (const char* inner : {"text_config", "text_encoder", "decoder", "generator"})
    refuse_unless_nothing(keys, inner, "this version reads no model within another");
  refuse_unless_nothing(keys, "attribute_map", "no key may change the meaning of others");
}

}  // namespace conclave
