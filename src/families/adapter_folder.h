// An adapter's folder as PEFT has it: adapter_config.json and adapter_model.safetensors.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "checkpoint/output_folder.h"
#include "checkpoint/safetensors_reader.h"
#include "config/adapter_section.h"
#include "families/adapter_names.h"

namespace conclave {

inline constexpr const char* adapter_config_file_name = "adapter_config.json";
inline constexpr const char* adapter_model_file_name = "adapter_model.safetensors";

// The adapter that adapter_config.json describes, of this model, as a job would ask for it. UserError that names the
// file and every value which no adapter here has: another kind than LoRA, DoRA, ranks that differ, ...
AdapterConfig read_adapter_config(const std::filesystem::path& folder, const ModelConfig& model);
// The folder or name of the model that the adapter is for, as adapter_config.json says; empty: it does not.
std::string base_of_adapter(const std::filesystem::path& folder);

// Its tensors. `model` has the adapter.
class AdapterReader {
 public:
  // UserError naming the file and a tensor that is missing, left over, of another shape or no float.
  AdapterReader(const std::filesystem::path& folder, const ModelConfig& model);

  const std::vector<AdapterTensor>& tensors() const { return tensors_; }
  // fp32, of the parameter's shape.
  at::Tensor read(const AdapterTensor& tensor) const;

 private:
  std::vector<AdapterTensor> tensors_;
  SafetensorsReader file_;
};

// Writes the folder. `model` has the adapter `adapter`; `base`: where the model itself is, for PEFT; `whole`: of each
// tensor, in order, the parameter in fp32.
void write_adapter(const OutputFolder& folder, const ModelConfig& model, const AdapterConfig& adapter,
                   const std::string& base, const std::function<at::Tensor(const AdapterTensor&)>& whole);
// For OutputFolder.
bool is_adapter_file(std::string_view name);

}  // namespace conclave
