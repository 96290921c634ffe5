#include "run/stored_adapter.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "base/error.h"
#include "base/text_file.h"
#include "config/job_file.h"
#include "run/adapter_shape.h"

namespace conclave {

AdapterConfig adapter_of_run(const CheckpointState& state) {
  std::vector<std::string> given;
  for (const auto& [key, value] : state.job)
    if (key.starts_with("adapter.") && key != "adapter.init_from") given.push_back(fmt::format("{}={}", key, value));
  return job_from_overrides(given).adapter;
}

StoredAdapter::StoredAdapter(const std::filesystem::path& path, const ModelConfig& model) {
  if (has_name(path / adapter_config_file_name)) {
    config_ = read_adapter_config(path, model);
  } else {
    checkpoint_ = std::make_unique<CheckpointReader>(path);
    config_ = adapter_of_run(checkpoint_->state());
    if (!config_.exists()) user_error("checkpoint {} is of a run without an adapter.", path.string());
  }
  model_ = with_adapter(model, config_);
  tensors_ = adapter_tensors(model_);
  if (!checkpoint_) folder_ = std::make_unique<AdapterReader>(path, model_);
}

at::Tensor StoredAdapter::read(const AdapterTensor& tensor) {
  if (folder_) return folder_->read(tensor);
  const at::Tensor whole = at::empty(tensor.shape, at::kFloat);
  const TensorSlice slice{state_tensor_name(kind_parameter, tensor.parameter), tensor.shape, 0, whole.view({-1})};
  checkpoint_->load({&slice, 1});
  return whole;
}

}  // namespace conclave
