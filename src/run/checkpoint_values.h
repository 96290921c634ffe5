// What a run carries from step to step beside parameters and moments, as checkpoints keep it (CheckpointState::values):
// small, and the same on all ranks.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "moe/dead_experts.h"
#include "moe/expert_selection.h"

namespace conclave {

using CheckpointValues = std::map<std::string, std::vector<double>>;

// Of the balancing rule: "selection_bias", layer by layer.
CheckpointValues checkpoint_values(const ExpertSelection& selection);
// "steps_without_tokens", layer by layer.
CheckpointValues checkpoint_values(const DeadExperts& dead_experts);
// What carries something starts anew where `values` has nothing of it (a model from elsewhere).
void restore(ExpertSelection& selection, const CheckpointValues& values);
void restore(DeadExperts& dead_experts, const CheckpointValues& values);

// Why a Hugging Face export of a run with these values computes something else than the run does; none: it does not.
std::optional<std::string> lost_in_export(const CheckpointValues& values);

}  // namespace conclave
