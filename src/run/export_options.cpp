#include "run/export_options.h"

#include "families/family.h"

namespace conclave {

HuggingFaceExportOptions hugging_face_export_options(const ModelConfig& config, at::ScalarType dtype) {
  HuggingFaceExportOptions options;
  options.dtype = dtype;
  // As Transformers keeps it: the steps of a thousandth that moved it must not be rounded away.
  for (const DiskNames& names : disk_names(config))
    if (names.parameter.ends_with(".selection_bias"))
      for (const DiskTensor& part : names.parts) options.in_fp32.push_back(part.name);
  options.config_json = hugging_face_config_json(config, dtype == at::kBFloat16 ? "bfloat16"
                                                         : dtype == at::kHalf   ? "float16"
                                                                                : "float32");
  options.generation_config_json = hugging_face_generation_config_json(config);
  options.vocabulary = config.vocab_size;
  return options;
}

}  // namespace conclave
