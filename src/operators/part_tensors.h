// What backward finds of a layer's parts, as a list of tensors: the form in which PyTorch saves it, and in which its
// selective activation checkpointing can keep it.
#pragma once

#include <vector>

#include "moe/routed_experts.h"

namespace conclave {

// The choices that the parts were planned for, then the same number of tensors for each part: its plans, its rows with
// their weights, and the pre-activation. Numbers are int64 on the CPU; what is undefined is an empty tensor, and the
// numbers say so.
std::vector<at::Tensor> to_tensors(const RoutedExperts::Parts& parts, const at::Tensor& expert_of_choice_TK);
RoutedExperts::Parts parts_of(const std::vector<at::Tensor>& tensors);
at::Tensor choices_of(const std::vector<at::Tensor>& tensors);

}  // namespace conclave
