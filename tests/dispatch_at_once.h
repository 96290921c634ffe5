// The four ways of rows, each waited for at once.
#pragma once

#include <ATen/ATen.h>

#include <utility>

#include "moe/dispatcher.h"

namespace conclave {

inline ExpertRows dispatch(Dispatcher& dispatcher, const DispatchPlan& plan, const at::Tensor& token_TH,
                           const at::Tensor& weight_TK) {
  return dispatcher.begin_dispatch(plan, token_TH, weight_TK).finish();
}

inline at::Tensor combine(Dispatcher& dispatcher, const DispatchPlan& plan, const at::Tensor& residual_TH,
                          at::Tensor row_RH) {
  at::Tensor out_TH = at::empty({plan.tokens, row_RH.size(1)}, row_RH.options());
  dispatcher.begin_combine(plan, std::move(row_RH)).finish(out_TH, residual_TH);
  return out_TH;
}

inline at::Tensor combine_backward(Dispatcher& dispatcher, const DispatchPlan& plan, const at::Tensor& grad_TH) {
  return dispatcher.begin_combine_backward(plan, grad_TH).finish();
}

inline DispatchGradient dispatch_backward(Dispatcher& dispatcher, const DispatchPlan& plan, ExpertRows grad) {
  DispatchGradient result{at::empty({plan.tokens, grad.row_RH.size(1)}, grad.row_RH.options()),
                          at::empty({plan.tokens, plan.top_k}, grad.weight_R.options())};
  dispatcher.begin_dispatch_backward(plan, std::move(grad)).finish(result);
  return result;
}

}  // namespace conclave
