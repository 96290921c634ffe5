#include "moe/local_dispatcher.h"

#include "kernels/permute.h"
#include "memory/memory_category.h"

namespace conclave {

SendOrder make_send_order(const at::Tensor& expert_of_choice_TK, int64_t experts, int ranks) {
  // Positions are sorted on the host: split sizes are needed there anyway.
  const at::Device device = expert_of_choice_TK.device();
  ExpertOrder order = order_by_expert(expert_of_choice_TK.to(at::kCPU), experts);
  SendOrder result;
  DispatchPlan& plan = result.plan;
  plan.tokens = expert_of_choice_TK.size(0);
  plan.row_of_choice_TK = order.row_of_choice_TK.to(device);
  plan.token_of_row_R = order.choice_of_row_R.div(expert_of_choice_TK.size(1), "floor").to(device);
  plan.choice_of_row_R = order.choice_of_row_R.to(device);
  const int64_t* count = order.count_E.const_data_ptr<int64_t>();
  const int64_t local = experts / ranks;
  for (int rank = 0; rank < ranks; ++rank)
    plan.sent_per_rank.push_back(std::accumulate(count + rank * local, count + (rank + 1) * local, int64_t{0}));
  result.count_E = order.count_E;
  return result;
}

DispatchPlan LocalDispatcher::plan(const at::Tensor& expert_of_choice_TK) {
  SendOrder order = make_send_order(expert_of_choice_TK, experts_, 1);
  DispatchPlan plan = std::move(order.plan);
  plan.received_per_rank = plan.sent_per_rank;
  const int64_t* count = order.count_E.const_data_ptr<int64_t>();
  plan.rows_per_expert.assign(count, count + experts_);
  return plan;
}

ExpertRows LocalDispatcher::dispatch(const DispatchPlan& plan, const at::Tensor& token_TH,
                                     const at::Tensor& weight_TK) {
  MemoryScope scope(MemoryCategory::dispatch);
  ExpertRows rows{at::empty({plan.sent_rows(), token_TH.size(1)}, token_TH.options()), {}};
  gather_rows(rows.row_RH, token_TH, plan.token_of_row_R);
  rows.weight_R = weight_TK.flatten().index_select(0, plan.choice_of_row_R);
  return rows;
}

at::Tensor LocalDispatcher::combine(const DispatchPlan& plan, const at::Tensor& residual_TH, at::Tensor row_RH) {
  at::Tensor out = at::empty_like(residual_TH);
  combine_rows(out, residual_TH, row_RH, plan.row_of_choice_TK);
  return out;
}

at::Tensor LocalDispatcher::combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) {
  MemoryScope scope(MemoryCategory::dispatch);
  at::Tensor rows = at::empty({plan.sent_rows(), grad_TH.size(1)}, grad_TH.options());
  gather_rows(rows, grad_TH, plan.token_of_row_R);
  return rows;
}

DispatchGradient LocalDispatcher::dispatch_backward(const DispatchPlan& plan, ExpertRows grad) {
  DispatchGradient result{at::empty({plan.tokens, grad.row_RH.size(1)}, grad.row_RH.options()), {}};
  combine_rows(result.token_TH, {}, grad.row_RH, plan.row_of_choice_TK);
  result.weight_TK = grad.weight_R.index_select(0, plan.row_of_choice_TK.flatten()).view(plan.row_of_choice_TK.sizes());
  return result;
}

}  // namespace conclave
