// What Transformers computes of a config.json and this engine does not: refused by key. For every kind of model whose
// config.json is read.
#pragma once

#include "families/hugging_face_keys.h"

namespace conclave {

// Keys that change what is computed, or from which files, whatever the model's sizes.
void check_supported(HuggingFaceKeys& keys);
// Of families that do not have them.
void refuse_prediction_modules(HuggingFaceKeys& keys);

}  // namespace conclave
