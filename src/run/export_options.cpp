#include "run/export_options.h"

#include "families/family.h"

namespace conclave {

HuggingFaceExportOptions hugging_face_export_options(const ModelConfig& config, at::ScalarType dtype) {
  HuggingFaceExportOptions options;
  options.dtype = dtype;
  options.config_json = hugging_face_config_json(config, dtype == at::kBFloat16 ? "bfloat16"
                                                         : dtype == at::kHalf   ? "float16"
                                                                                : "float32");
  options.generation_config_json = hugging_face_generation_config_json(config);
  options.vocabulary = config.vocab_size;
  return options;
}

}  // namespace conclave
