// The dispatcher of expert degree 1: every expert is here, rows are only permuted.
#pragma once

#include "moe/dispatcher.h"

namespace conclave {

class LocalDispatcher final : public Dispatcher {
 public:
  explicit LocalDispatcher(int64_t experts) : experts_(experts) {}

  DispatchPlan plan(const at::Tensor& expert_of_choice_TK) override;
  ExpertRows dispatch(const DispatchPlan& plan, const at::Tensor& token_TH, const at::Tensor& weight_TK) override;
  at::Tensor combine(const DispatchPlan& plan, const at::Tensor& residual_TH, at::Tensor row_RH) override;
  at::Tensor combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) override;
  DispatchGradient dispatch_backward(const DispatchPlan& plan, ExpertRows grad) override;

 private:
  int64_t experts_;
};

// The part of a plan that needs no other rank: `experts` over `ranks` equal consecutive slices.
struct SendOrder {
  DispatchPlan plan;   // the send side is filled in
  at::Tensor count_E;  // int64, CPU: choices that fell on each expert
};
SendOrder make_send_order(const at::Tensor& expert_of_choice_TK, int64_t experts, int ranks);

}  // namespace conclave
