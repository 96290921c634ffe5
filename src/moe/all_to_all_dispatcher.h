// The dispatcher of expert degree > 1: one message per peer and direction. A row travels packed with its routing weight
// (kernels/permute.h); expert outputs and their gradients travel bare, because the weight is applied inside the
// experts.
//
// Ahead of the rows go their numbers: how many rows of each of its experts a rank gets from each other rank. Where
// experts may be lent, every rank of the axis learns all of these numbers, for all make the spill plan alike.
#pragma once

#include "moe/dispatcher.h"
#include "moe/rows_in_flight.h"

namespace conclave {

class AllToAllDispatcher final : public Dispatcher {
 public:
  // `expert` and `clock` outlive the dispatcher.
  AllToAllDispatcher(Communicator& expert, int64_t experts, StepClock& clock, std::optional<SpillOptions> spill = {})
      : expert_(expert), experts_(experts), clock_(clock), spill_(spill) {}

  DispatchPlan plan(const Choices& choices) override;
  Arriving<ExpertRows()> begin_dispatch(const DispatchPlan& plan, const at::Tensor& token_TH,
                                        const at::Tensor& weight_TK) override;
  Combined begin_combine(const DispatchPlan& plan, at::Tensor row_RH) override;
  Arriving<at::Tensor()> begin_combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) override;
  DispatchedBack begin_dispatch_backward(const DispatchPlan& plan, ExpertRows grad) override;

 private:
  enum class Direction { to_experts, from_experts };
  // Sends all rows of `rows` (dim 0); those that arrive come out of it.
  std::shared_ptr<RowsInFlight> exchange(const DispatchPlan& plan, Direction direction, at::Tensor rows);
  DispatchPlan plan_at_home(const Choices& choices);
  DispatchPlan plan_with_helpers(const Choices& choices, const SpillOptions& options);

  Communicator& expert_;
  int64_t experts_;
  StepClock& clock_;
  std::optional<SpillOptions> spill_;
};

}  // namespace conclave
