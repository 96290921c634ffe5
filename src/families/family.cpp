#include "families/family.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "config/mistake.h"
#include "families/decoder_keys.h"
#include "families/deepseek_v2.h"
#include "families/deepseek_v3.h"
#include "families/glm4_moe.h"
#include "families/gpt_oss.h"
#include "families/llama.h"
#include "families/mistral.h"
#include "families/mixtral.h"
#include "families/olmoe.h"
#include "families/qwen2_moe.h"
#include "families/qwen3.h"
#include "families/qwen3_moe.h"
#include "families/unsupported_keys.h"

namespace conclave {
namespace {

using nlohmann::json;

void check_computed(HuggingFaceKeys& keys, const ModelConfig& config) {
  for (const std::string& part : not_computed(config))
    keys.refuse(fmt::format("the model has {}, which this version does not compute.", part), "Use another model.");
  keys.finish();
}

}  // namespace

const std::vector<const Family*>& families() {
  static const std::vector<const Family*> all = {
      &mixtral_family, &qwen3_moe_family,   &qwen2_moe_family,   &olmoe_family,    &llama_family,   &mistral_family,
      &qwen3_family,   &deepseek_v2_family, &deepseek_v3_family, &glm4_moe_family, &gpt_oss_family,
  };
  return all;
}

const Family* find_family(std::string_view model_type) {
  for (const Family* family : families())
    if (family->model_type == model_type) return family;
  return nullptr;
}

const Family& family_of(const ModelConfig& config) {
  const Family* family = find_family(config.family);
  check_invariant(family != nullptr, "there is no family \"{}\"", config.family);
  return *family;
}

std::string family_names() {
  std::vector<std::string_view> names;
  for (const Family* family : families()) names.push_back(family->name);
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string model_types_in_words() {
  std::vector<std::string> types;
  for (const Family* family : families()) types.push_back(fmt::format("\"{}\"", family->model_type));
  return any_of(types);
}

std::string a_model_in_words() {
  return fmt::format("a model whose model_type is {}", model_types_in_words());
}

ModelConfig parse_model_config(HuggingFaceKeys& keys) {
  const json type = keys.missing("model_type") ? json() : keys.at("model_type");
  const Family* family = type.is_string() ? find_family(type.get<std::string>()) : nullptr;
  if (family == nullptr)
    keys.refuse(type.is_null() ? std::string("model_type is missing.")
                               : fmt::format("model_type is {}, which this version does not train.", type.dump()),
                fmt::format("Use {}.", a_model_in_words()));
  check_supported(keys);
  if (family == nullptr || !family->has_prediction_modules) refuse_prediction_modules(keys);
  keys.finish();  // of another architecture nothing else means what it says
  ModelConfig config = family->read(keys);
  keys.finish();
  config.family = family->model_type;
  check_computed(keys, config);
  return config;
}

ModelConfig read_model_config(const std::filesystem::path& file_or_folder) {
  const ConfigText config = read_config_text(file_or_folder, a_model_in_words());
  return parse_model_config(config.text, config.origin);
}

std::vector<std::string> unknown_keys(const std::filesystem::path& file_or_folder) {
  HuggingFaceKeys keys(read_config_text(file_or_folder, a_model_in_words()));
  parse_model_config(keys);
  return keys.unknown();
}

ModelConfig parse_model_config(const std::string& text, const std::string& origin) {
  HuggingFaceKeys keys({text, origin});
  return parse_model_config(keys);
}

std::string hugging_face_config_json(const ModelConfig& config, std::string_view dtype) {
  const Family& family = family_of(config);
  json written = written_decoder(config);
  written["architectures"] = {family.architecture};
  written["model_type"] = family.model_type;
  written["dtype"] = written["torch_dtype"] = dtype;
  family.write(config, written);
  return written.dump(2) + "\n";
}

std::string hugging_face_generation_config_json(const ModelConfig& config) {
  const json all = written_decoder(config);
  json written;
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) written[key] = all[key];
  return written.dump(2) + "\n";
}

std::string left_out_weights(const ModelConfig& config) {
  if (!family_of(config).has_prediction_modules) return {};
  return fmt::format("model.layers.{}.", config.layer_count());
}

std::vector<DiskNames> disk_names(const ModelConfig& config) {
  return family_of(config).disk_names(config);
}

}  // namespace conclave
