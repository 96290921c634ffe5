#include "train/checkpoint_values.h"

#include <algorithm>

#include "base/error.h"

namespace conclave {
namespace {

constexpr const char* key_selection_bias = "selection_bias";

}  // namespace

CheckpointValues checkpoint_values(const ExpertSelection& selection) {
  if (!selection.state_LE().defined()) return {};
  const at::Tensor state = selection.state_LE().to(at::kCPU, at::kDouble).contiguous();
  const auto* data = state.const_data_ptr<double>();
  return {{key_selection_bias, {data, data + state.numel()}}};
}

void restore(ExpertSelection& selection, const CheckpointValues& values) {
  const at::Tensor state_LE = selection.state_LE();
  const auto found = values.find(key_selection_bias);
  if (!state_LE.defined() || found == values.end()) return;
  check_invariant(static_cast<int64_t>(found->second.size()) == state_LE.numel(), "{} has {} values, not {}",
                  key_selection_bias, found->second.size(), state_LE.numel());
  selection.restore(at::tensor(found->second, at::kDouble).view(state_LE.sizes()));
}

std::optional<std::string> lost_in_export(const CheckpointValues& values) {
  const auto found = values.find(key_selection_bias);
  if (found == values.end() || std::all_of(found->second.begin(), found->second.end(), [](double b) { return b == 0; }))
    return std::nullopt;
  return "the model was trained with a selection bias of its experts (moe.moe_load_balancing: bias), for which Hugging "
         "Face's Mixtral has no place: the export chooses experts by the router's scores alone, and its loss differs";
}

}  // namespace conclave
