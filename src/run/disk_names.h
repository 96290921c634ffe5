// A Mixtral as Hugging Face files hold it.
#pragma once

#include <vector>

#include "checkpoint/hugging_face_export.h"
#include "checkpoint/tensor_slice.h"
#include "config/model_config.h"

namespace conclave {

// What its parameters are called: one tensor per expert and projection (Transformers 4, and what Transformers 5 saves),
// or experts fused (a Transformers 5 checkpoint that was loaded already fused).
std::vector<DiskNames> mixtral_disk_names(const ModelConfig& config);

// Where a Mixtral's parameters, all but the routers, lie in the files of a dense Mistral or Llama: every expert is its
// layer's one MLP.
std::vector<DiskNames> dense_disk_names(const ModelConfig& config);

// What an export of it says of itself. `dtype`: fp32, bf16 or fp16.
HuggingFaceExportOptions hugging_face_export_options(const ModelConfig& config, at::ScalarType dtype);

}  // namespace conclave
