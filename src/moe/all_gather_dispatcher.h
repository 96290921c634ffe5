// The dispatcher that brings all tokens of the expert group to each of its ranks, which takes from them what its
// experts want, and sums what they return by a reduce-scatter. No numbers of rows travel ahead and every message has
// one size, for which (ranks - 1) x tokens travel instead of the chosen rows: for small groups, and as a reference.
//
// Ranks may have different numbers of tokens; each is given as many places as the one with the most. In bf16 a token's
// sum over its experts is rounded once on each rank that holds some of them.
#pragma once

#include "moe/dispatcher.h"
#include "moe/rows_in_flight.h"

namespace conclave {

class AllGatherDispatcher final : public Dispatcher {
 public:
  // `expert` and `clock` outlive the dispatcher.
  AllGatherDispatcher(Communicator& expert, int64_t experts, StepClock& clock)
      : expert_(expert), experts_(experts), clock_(clock) {}

  DispatchPlan plan(const Choices& choices) override;
  Arriving<ExpertRows()> begin_dispatch(const DispatchPlan& plan, const at::Tensor& token_TH,
                                        const at::Tensor& weight_TK) override;
  Combined begin_combine(const DispatchPlan& plan, at::Tensor row_RH) override;
  Arriving<at::Tensor()> begin_combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) override;
  DispatchedBack begin_dispatch_backward(const DispatchPlan& plan, ExpertRows grad) override;

 private:
  // This rank's tokens to all ranks: [ranks * places, ...] out of [tokens, ...].
  std::shared_ptr<RowsInFlight> gather(int64_t places, at::Tensor own);
  // The sum over the ranks of this rank's places: [places, ...] out of [ranks * places, ...].
  std::shared_ptr<RowsInFlight> reduce(int64_t places, at::Tensor all);

  Communicator& expert_;
  int64_t experts_;
  StepClock& clock_;
};

}  // namespace conclave
