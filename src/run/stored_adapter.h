// An adapter on the disk: a folder of PEFT, or a checkpoint of a run that trained one.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "checkpoint/checkpoint_reader.h"
#include "families/adapter_folder.h"

namespace conclave {

// The adapter of the run that wrote a checkpoint; without a rank: there is none.
AdapterConfig adapter_of_run(const CheckpointState& state);

class StoredAdapter {
 public:
  // `model`: what it lies beside. UserError as read_adapter_config and CheckpointReader.
  StoredAdapter(const std::filesystem::path& path, const ModelConfig& model);

  const AdapterConfig& config() const { return config_; }
  const ModelConfig& model() const { return model_; }  // with the adapter
  const std::vector<AdapterTensor>& tensors() const { return tensors_; }
  // fp32, of the parameter's shape.
  at::Tensor read(const AdapterTensor& tensor);

 private:
  std::unique_ptr<CheckpointReader> checkpoint_;  // or
  std::unique_ptr<AdapterReader> folder_;
  AdapterConfig config_;
  ModelConfig model_;
  std::vector<AdapterTensor> tensors_;
};

}  // namespace conclave
