// What an export of a model says of itself.
#pragma once

#include "checkpoint/hugging_face_export.h"
#include "config/model_config.h"

namespace conclave {

// `dtype`: fp32, bf16 or fp16.
HuggingFaceExportOptions hugging_face_export_options(const ModelConfig& config, at::ScalarType dtype);

}  // namespace conclave
