// What a Hugging Face Mixtral config.json says, in either of its versions (Transformers 4: rope_theta, torch_dtype; 5:
// rope_parameters, dtype).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

class HuggingFaceKeys;

struct ModelConfig {
  int64_t vocab_size = 32000;
  int64_t hidden_size = 4096;
  int64_t intermediate_size = 14336;
  int64_t num_hidden_layers = 32;
  int64_t num_attention_heads = 32;
  int64_t num_key_value_heads = 8;
  int64_t head_dim = 128;  // hidden_size / num_attention_heads when the file has none
  int64_t max_position_embeddings = 131072;
  double rms_norm_eps = 1e-5;
  double rope_theta = 1e6;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  std::optional<int64_t> sliding_window;  // tokens a query sees, itself included; none: all before it
  int64_t num_experts_per_tok = 2;
  int64_t num_local_experts = 8;  // the global number of experts (the name is Hugging Face's)
  double router_aux_loss_coef = 0.001;
  double router_jitter_noise = 0.0;
  std::optional<int64_t> bos_token_id = 1;
  std::vector<int64_t> eos_token_ids = {2};  // usually one; may be empty
  std::optional<int64_t> pad_token_id;

  bool operator==(const ModelConfig&) const = default;
};

// Reads a config.json, or the one in a folder, as Transformers 5.17 reads it. Refuses, with a UserError that names
// file, key and remedy: no such file, not JSON, another model_type, keys that make Transformers compute what this
// engine does not (unsupported_keys.h), values that do not fit each other. One error holds all the mistakes. Keys that
// say nothing of the model's arithmetic are not looked at (ignored_keys.h).
ModelConfig read_model_config(const std::filesystem::path& file_or_folder);

// The keys of the same file that neither Transformers nor this version knows.
std::vector<std::string> unknown_keys(const std::filesystem::path& file_or_folder);

// The same of the text of a config.json; `origin` names it in refusals.
ModelConfig parse_model_config(const std::string& text, const std::string& origin);

// The same of keys whose other mistakes are to be in the same refusal; finishes them.
ModelConfig parse_model_config(HuggingFaceKeys& keys);

// A complete config.json of a MixtralForCausalLM that Transformers 4 and 5 read, and read_model_config reads back
// equal. `dtype`: that of the weights beside it, as Transformers names it ("float32", "bfloat16").
std::string hugging_face_config_json(const ModelConfig& config, std::string_view dtype);

// The generation_config.json of an export: the special tokens that generation needs to know.
std::string hugging_face_generation_config_json(const ModelConfig& config);

}  // namespace conclave
