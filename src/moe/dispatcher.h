// Brings tokens to the ranks that hold their experts, and expert outputs back. Backward through dispatch is combine,
// and the other way round. One interface whatever the expert degree: with degree 1 nothing travels.
#pragma once

#include <memory>

#include "base/step_clock.h"
#include "comm/communicator.h"
#include "moe/dispatch_plan.h"

namespace conclave {

// Rows in expert order: by local expert, then source rank, then source position.
struct ExpertRows {
  at::Tensor row_RH;
  at::Tensor weight_R;  // fp32: the routing weight of each row, or its gradient on the way back
};

// Gradients with respect to what was dispatched.
struct DispatchGradient {
  at::Tensor token_TH;
  at::Tensor weight_TK;  // fp32
};

class Dispatcher {
 public:
  virtual ~Dispatcher() = default;

  // expert_of_choice [T,K] int32: global expert numbers. Collective over the expert axis.
  virtual DispatchPlan plan(const at::Tensor& expert_of_choice_TK) = 0;
  // token [T,H] in the compute dtype, weight [T,K] fp32.
  virtual ExpertRows dispatch(const DispatchPlan& plan, const at::Tensor& token_TH, const at::Tensor& weight_TK) = 0;
  // residual [T,H] + the sum over k of the rows that experts computed (the weights are in them already).
  virtual at::Tensor combine(const DispatchPlan& plan, const at::Tensor& residual_TH, at::Tensor row_RH) = 0;
  // The gradient of combine's rows, in expert order.
  virtual at::Tensor combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) = 0;
  // Lets the rows go before what they become arrives.
  virtual DispatchGradient dispatch_backward(const DispatchPlan& plan, ExpertRows grad) = 0;
};

// `expert`: the expert axis; `clock`: learns how long rows were waited for. Both outlive the dispatcher. `experts`: of
// the whole layer.
std::unique_ptr<Dispatcher> make_dispatcher(Communicator& expert, int64_t experts, StepClock& clock);

}  // namespace conclave
