// The dispatcher of expert degree 1: every expert is here, rows are only permuted.
#pragma once

#include "moe/dispatcher.h"

namespace conclave {

class LocalDispatcher final : public Dispatcher {
 public:
  explicit LocalDispatcher(int64_t experts) : experts_(experts) {}

  DispatchPlan plan(const Choices& choices) override;
  Arriving<ExpertRows()> begin_dispatch(const DispatchPlan& plan, const at::Tensor& token_TH,
                                        const at::Tensor& weight_TK) override;
  Combined begin_combine(const DispatchPlan& plan, at::Tensor row_RH) override;
  Arriving<at::Tensor()> begin_combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) override;
  DispatchedBack begin_dispatch_backward(const DispatchPlan& plan, ExpertRows grad) override;

 private:
  int64_t experts_;
};

// What it is made of, for dispatchers that bring all tokens to a rank: rows of tokens [N,H] with the weights of their
// choices [N,K], and the gradient of the weights from that of the rows (0 for choices without one).
ExpertRows gather_expert_rows(const DispatchPlan& plan, const at::Tensor& token_NH, const at::Tensor& weight_NK);
void gather_weight_gradient(at::Tensor grad_NK, const DispatchPlan& plan, const at::Tensor& grad_weight_R);

}  // namespace conclave
