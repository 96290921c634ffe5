// The config.json of a dense Mistral or Llama that a Mixtral can be upcycled from.
#pragma once

#include <filesystem>

#include "config/model_config.h"

namespace conclave {

// Refuses, with a UserError that holds all mistakes: another architecture; what this engine does not compute (biases,
// scaled rotary embeddings, ...); and each value that must be `model`'s for the two to compute the same, by its key.
void check_dense_config(const std::filesystem::path& folder, const ModelConfig& model);

}  // namespace conclave
