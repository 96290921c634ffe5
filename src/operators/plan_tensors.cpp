#include "operators/plan_tensors.h"

#include <ATen/ATen.h>

#include "base/error.h"

namespace conclave {
namespace {

constexpr size_t tensors_of_a_plan = 8;

at::Tensor or_empty(const at::Tensor& tensor, const at::Tensor& like) {
  return tensor.defined() ? tensor : at::empty({0}, like.options());
}

}  // namespace

std::vector<at::Tensor> to_tensors(const DispatchPlan& plan, const at::Tensor& expert_of_choice_TK) {
  std::vector<int64_t> numbers{plan.tokens, static_cast<int64_t>(plan.sent_per_rank.size())};
  numbers.insert(numbers.end(), plan.sent_per_rank.begin(), plan.sent_per_rank.end());
  numbers.insert(numbers.end(), plan.received_per_rank.begin(), plan.received_per_rank.end());
  return {at::tensor(numbers, at::kLong),
          at::tensor(plan.rows_per_expert, at::kLong),
          plan.row_of_choice_TK,
          plan.token_of_row_R,
          plan.choice_of_row_R,
          or_empty(plan.arrival_of_row_R, plan.token_of_row_R),
          or_empty(plan.row_of_arrival_R, plan.token_of_row_R),
          expert_of_choice_TK};
}

DispatchPlan plan_of(at::TensorList tensors) {
  check_invariant(tensors.size() == tensors_of_a_plan, "a dispatch plan is {} tensors, not {}", tensors_of_a_plan,
                  tensors.size());
  const auto* number = tensors[0].const_data_ptr<int64_t>();
  const int64_t ranks = number[1];
  check_invariant(tensors[0].numel() == 2 + 2 * ranks, "a dispatch plan of {} ranks has {} numbers", ranks,
                  tensors[0].numel());
  DispatchPlan plan;
  plan.tokens = number[0];
  plan.sent_per_rank.assign(number + 2, number + 2 + ranks);
  plan.received_per_rank.assign(number + 2 + ranks, number + 2 + 2 * ranks);
  const auto* rows = tensors[1].const_data_ptr<int64_t>();
  plan.rows_per_expert.assign(rows, rows + tensors[1].numel());
  plan.row_of_choice_TK = tensors[2];
  plan.top_k = tensors[2].size(1);
  plan.token_of_row_R = tensors[3];
  plan.choice_of_row_R = tensors[4];
  if (ranks > 1) {
    plan.arrival_of_row_R = tensors[5];
    plan.row_of_arrival_R = tensors[6];
  }
  return plan;
}

}  // namespace conclave
