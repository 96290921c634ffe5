// The dispatcher of expert degree > 1: one message per peer and direction. A row travels packed with its routing weight
// (kernels/permute.h); expert outputs and their gradients travel bare, because the weight is applied inside the
// experts.
#pragma once

#include "moe/dispatcher.h"

namespace conclave {

class AllToAllDispatcher final : public Dispatcher {
 public:
  // `expert` and `clock` outlive the dispatcher.
  AllToAllDispatcher(Communicator& expert, int64_t experts, StepClock& clock)
      : expert_(expert), experts_(experts), clock_(clock) {}

  DispatchPlan plan(const at::Tensor& expert_of_choice_TK) override;
  ExpertRows dispatch(const DispatchPlan& plan, const at::Tensor& token_TH, const at::Tensor& weight_TK) override;
  at::Tensor combine(const DispatchPlan& plan, const at::Tensor& residual_TH, at::Tensor row_RH) override;
  at::Tensor combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) override;
  DispatchGradient dispatch_backward(const DispatchPlan& plan, ExpertRows grad) override;

 private:
  enum class Direction { to_experts, from_experts };
  // Sends all rows of `rows` (dim 0) and returns those that arrive.
  at::Tensor exchange(const DispatchPlan& plan, Direction direction, at::Tensor rows);
  void all_to_all(const at::Tensor& output, const at::Tensor& input, const std::vector<int64_t>& output_splits,
                  const std::vector<int64_t>& input_splits);

  Communicator& expert_;
  int64_t experts_;
  StepClock& clock_;
};

}  // namespace conclave
