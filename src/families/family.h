// A family of models is one file pair: what a config.json of its model_type says in blocks, how it is written, and what
// its parameters are called on disk. This is the list of them, and what everybody else asks of it.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/tensor_slice.h"
#include "config/model_config.h"
#include "families/hugging_face_keys.h"

namespace conclave {

struct Family {
  std::string_view model_type;    // of its config.json
  std::string_view name;          // for people
  std::string_view architecture;  // the class of Transformers that has the head
  // Takes the keys as Transformers 5.17 does. Refuses what it cannot honour; everybody's mistakes are in one refusal.
  ModelConfig (*read)(HuggingFaceKeys& keys);
  // Adds the keys that only some families have (families/decoder_keys.h writes the others).
  void (*write)(const ModelConfig& config, nlohmann::json& written);
  std::vector<DiskNames> (*disk_names)(const ModelConfig& config);
  // Files may hold modules that predict further tokens, as layers behind the last one. Transformers' forward pass does
  // not compute them, and neither are they read here.
  bool has_prediction_modules = false;
};

// All of them; of one model_type, null: there is none.
const std::vector<const Family*>& families();
const Family* find_family(std::string_view model_type);
const Family& family_of(const ModelConfig& config);
// "Mixtral, Llama, Mistral".
std::string family_names();
// "\"mixtral\", \"llama\" or \"mistral\"".
std::string model_types_in_words();

// Reads a config.json, or the one in a folder, as Transformers 5.17 reads it. Refuses, with a UserError that names
// file, key and remedy: no such file, not JSON, a model_type of no family, keys that make Transformers compute what no
// block computes, values that do not fit each other. One error holds all the mistakes. Keys that say nothing of the
// model's arithmetic are not looked at (ignored_keys.h).
ModelConfig read_model_config(const std::filesystem::path& file_or_folder);
// The same of the text of a config.json; `origin` names it in refusals.
ModelConfig parse_model_config(const std::string& text, const std::string& origin);
// The same of keys whose other mistakes are to be in the same refusal; finishes them.
ModelConfig parse_model_config(HuggingFaceKeys& keys);
// The keys of the same file that neither Transformers nor this version knows.
std::vector<std::string> unknown_keys(const std::filesystem::path& file_or_folder);
// For refusals: what a file of a model should be.
std::string a_model_in_words();

// A complete config.json that Transformers 4 and 5 read, and read_model_config reads back equal. `dtype`: that of the
// weights beside it, as Transformers names it ("float32", "bfloat16").
std::string hugging_face_config_json(const ModelConfig& config, std::string_view dtype);
// The generation_config.json of an export: the special tokens that generation needs to know.
std::string hugging_face_generation_config_json(const ModelConfig& config);

// What the names of tensors begin with that are in the family's files, but not in its model; empty: there are none.
std::string left_out_weights(const ModelConfig& config);
// What the parameters are called in a Hugging Face folder: the names that Transformers writes, and others accepted.
std::vector<DiskNames> disk_names(const ModelConfig& config);

}  // namespace conclave
