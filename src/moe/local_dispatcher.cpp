#include "moe/local_dispatcher.h"

#include "kernels/permute.h"
#include "kernels/values.h"
#include "memory/memory_category.h"
#include "moe/send_order.h"

namespace conclave {

ExpertRows gather_expert_rows(const DispatchPlan& plan, const at::Tensor& token_NH, const at::Tensor& weight_NK) {
  MemoryScope scope(MemoryCategory::dispatch);
  ExpertRows rows{at::empty({plan.token_of_row_R.size(0), token_NH.size(1)}, token_NH.options()), {}};
  gather_rows(rows.row_RH, token_NH, plan.token_of_row_R);
  rows.weight_R = take_values(weight_NK, plan.choice_of_row_R);
  return rows;
}

void gather_weight_gradient(at::Tensor grad_NK, const DispatchPlan& plan, const at::Tensor& grad_weight_R) {
  grad_NK.zero_();
  grad_NK.view(-1).index_copy_(0, plan.choice_of_row_R.to(at::kLong), grad_weight_R);
}

DispatchPlan LocalDispatcher::plan(const Choices& choices) {
  SendOrder order = make_send_order(choices.expert_TK, {experts_}, choices.assumed_rows_of(0));
  DispatchPlan plan = std::move(order.plan);
  plan.received_per_rank = plan.sent_per_rank;
  const auto* count = order.count_S.const_data_ptr<int64_t>();
  plan.rows_per_expert.assign(count, count + experts_);
  return plan;
}

Arriving<ExpertRows()> LocalDispatcher::begin_dispatch(const DispatchPlan& plan, const at::Tensor& token_TH,
                                                       const at::Tensor& weight_TK) {
  return Arriving<ExpertRows()>(
      [rows = gather_expert_rows(plan, token_TH, weight_TK)]() mutable { return std::move(rows); });
}

Dispatcher::Combined LocalDispatcher::begin_combine(const DispatchPlan& plan, at::Tensor row_RH) {
  return Combined([&plan, row_RH = std::move(row_RH)](at::Tensor out_TH, const at::Tensor& residual_TH) {
    combine_rows(out_TH, residual_TH, row_RH, plan.row_of_choice_TK);
  });
}

Arriving<at::Tensor()> LocalDispatcher::begin_combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) {
  MemoryScope scope(MemoryCategory::dispatch);
  at::Tensor rows = at::empty({plan.sent_rows(), grad_TH.size(1)}, grad_TH.options());
  gather_rows(rows, grad_TH, plan.token_of_row_R);
  return Arriving<at::Tensor()>([rows]() mutable { return std::move(rows); });
}

Dispatcher::DispatchedBack LocalDispatcher::begin_dispatch_backward(const DispatchPlan& plan, ExpertRows grad) {
  return DispatchedBack([&plan, grad = std::move(grad)](const DispatchGradient& gradient) {
    combine_rows(gradient.token_TH, {}, grad.row_RH, plan.row_of_choice_TK);
    gather_weight_gradient(gradient.weight_TK, plan, grad.weight_R);
  });
}

}  // namespace conclave
