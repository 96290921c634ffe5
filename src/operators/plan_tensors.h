// A DispatchPlan as a list of tensors: the form in which it passes between operators, and in which PyTorch's selective
// activation checkpointing can keep it.
#pragma once

#include <vector>

#include "moe/dispatch_plan.h"

namespace conclave {

// [0] int64, CPU: tokens, ranks, then rows sent to and received from each rank; [1] int64 [L], CPU: rows per expert;
// then row_of_choice, token_of_row, choice_of_row, arrival_of_row and row_of_arrival, the last two empty in a group of
// one rank; behind them the choices that the plan was made for.
std::vector<at::Tensor> to_tensors(const DispatchPlan& plan, const at::Tensor& expert_of_choice_TK);
DispatchPlan plan_of(at::TensorList tensors);

}  // namespace conclave
