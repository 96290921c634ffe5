#include "run/checkpoint_values.h"

#include <algorithm>

#include "base/error.h"

namespace conclave {
namespace {

constexpr const char* key_selection_bias = "selection_bias";
constexpr const char* key_steps_without_tokens = "steps_without_tokens";

std::vector<double> list_of(const at::Tensor& state_LE) {
  const at::Tensor state = state_LE.to(at::kCPU, at::kDouble).contiguous();
  const auto* data = state.const_data_ptr<double>();
  return {data, data + state.numel()};
}

// In the shape of `state_LE`.
at::Tensor like(const at::Tensor& state_LE, const CheckpointValues::value_type& value) {
  check_invariant(static_cast<int64_t>(value.second.size()) == state_LE.numel(), "{} has {} values, not {}",
                  value.first, value.second.size(), state_LE.numel());
  return at::tensor(value.second, at::kDouble).view(state_LE.sizes());
}

}  // namespace

CheckpointValues checkpoint_values(const ExpertSelection& selection) {
  if (!selection.state_LE().defined()) return {};
  return {{key_selection_bias, list_of(selection.state_LE())}};
}

CheckpointValues checkpoint_values(const DeadExperts& dead_experts) {
  return {{key_steps_without_tokens, list_of(dead_experts.state_LE())}};
}

void restore(ExpertSelection& selection, const CheckpointValues& values) {
  const at::Tensor state_LE = selection.state_LE();
  const auto found = values.find(key_selection_bias);
  if (!state_LE.defined() || found == values.end()) return;
  selection.restore(like(state_LE, *found));
}

void restore(DeadExperts& dead_experts, const CheckpointValues& values) {
  const auto found = values.find(key_steps_without_tokens);
  if (found != values.end()) dead_experts.restore(like(dead_experts.state_LE(), *found));
}

std::optional<std::string> lost_in_export(const CheckpointValues& values) {
  const auto found = values.find(key_selection_bias);
  if (found == values.end() || std::all_of(found->second.begin(), found->second.end(), [](double b) { return b == 0; }))
    return std::nullopt;
  return "the model was trained with a selection bias of its experts (moe.moe_load_balancing: bias), for which Hugging "
         "Face's model has no place: the export chooses experts by the router's scores alone, and its loss differs";
}

}  // namespace conclave
