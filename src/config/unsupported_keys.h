// What Transformers computes of a config.json and this engine does not: refused by key. For every kind of model whose
// config.json is read.
#pragma once

#include "config/hugging_face_keys.h"
#include "config/model_config.h"

namespace conclave {

// Keys that change what is computed, or from which files, whatever the model's sizes.
void check_supported(HuggingFaceKeys& keys);

// Layers of several kinds. `config` has been read already.
void check_layers_are_alike(HuggingFaceKeys& keys, const ModelConfig& config);

// The base of the rotary embedding, wherever Transformers 4 or 5 writes it (rope_theta, rope_parameters,
// rope_scaling), with Transformers' own precedence; `theta` is the model class's default. Refuses scaled embeddings.
void read_rope(HuggingFaceKeys& keys, double& theta);

}  // namespace conclave
