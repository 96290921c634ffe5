// Brings tokens to the ranks that hold their experts, and expert outputs back. Backward through dispatch is combine,
// and the other way round. One interface whatever the expert degree: with degree 1 nothing travels.
//
// Each of the four only starts the rows on their way, so that experts can compute meanwhile; the plan stays where it is
// until they have arrived. Calls are collective over the expert axis: all its ranks make them in the same order.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "base/step_clock.h"
#include "comm/communicator.h"
#include "moe/choices.h"
#include "moe/dispatch_plan.h"
#include "moe/dispatch_settings.h"

namespace conclave {

// Something on its way between ranks. finish(...) waits for it, puts it where it belongs, and ends the object.
template <class Signature>
class Arriving;

template <class Result, class... Places>
class Arriving<Result(Places...)> {
 public:
  Arriving() = default;
  explicit Arriving(std::function<Result(Places...)> finish) : finish_(std::move(finish)) {}

  Result finish(Places... places) { return std::exchange(finish_, nullptr)(std::forward<Places>(places)...); }

 private:
  std::function<Result(Places...)> finish_;
};

// Rows in expert order: by local expert, then source rank, then source position.
struct ExpertRows {
  at::Tensor row_RH;
  at::Tensor weight_R;  // fp32: the routing weight of each row, or its gradient on the way back
};

// Gradients with respect to what was dispatched.
struct DispatchGradient {
  at::Tensor token_TH;
  at::Tensor weight_TK;  // fp32; 0 for choices that were dropped
};

class Dispatcher {
 public:
  virtual ~Dispatcher() = default;

  virtual DispatchPlan plan(const Choices& choices) = 0;

  // token [T,H] in the compute dtype, weight [T,K] fp32.
  virtual Arriving<ExpertRows()> begin_dispatch(const DispatchPlan& plan, const at::Tensor& token_TH,
                                                const at::Tensor& weight_TK) = 0;
  // finish(out, residual): out [T,H] = residual [T,H] + the sum over k of the rows that experts computed (the weights
  // are in them already); out may be residual itself, which may be undefined for none.
  using Combined = Arriving<void(at::Tensor out_TH, at::Tensor residual_TH)>;
  virtual Combined begin_combine(const DispatchPlan& plan, at::Tensor row_RH) = 0;
  // The gradient of combine's rows, in expert order.
  virtual Arriving<at::Tensor()> begin_combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) = 0;
  // finish(gradient) writes into its tensors. Lets the rows go before what they become arrives.
  using DispatchedBack = Arriving<void(DispatchGradient gradient)>;
  virtual DispatchedBack begin_dispatch_backward(const DispatchPlan& plan, ExpertRows grad) = 0;

 protected:
  // The end of combine where the rows are summed already.
  static void put(const at::Tensor& sum_TH, at::Tensor out_TH, const at::Tensor& residual_TH);
};

// `expert`: the expert axis; `clock`: learns how long rows were waited for. Both outlive the dispatcher. `experts`: of
// the whole layer.
std::unique_ptr<Dispatcher> make_dispatcher(Communicator& expert, int64_t experts, StepClock& clock,
                                            const DispatchSettings& settings = {});

}  // namespace conclave
