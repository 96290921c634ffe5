// Global token shuffle: before their dispatch tokens change places at random with those of the other ranks of the
// expert group, and return after. A text that all wants one expert is then not the affair of the one rank that read it:
// what ranks send to an expert is even. Results are the same: who goes to which expert is decided before.
//
// Token n of the group's (one rank's after the other's, as the data's stream has them) goes to place p(n) of a random
// permutation, which depends on the seed and the number of tokens alone; each rank keeps as many tokens as it had, in
// the order of where they come from.
#pragma once

#include "moe/dispatcher.h"
#include "moe/rows_in_flight.h"

namespace conclave {

class ShuffledDispatcher final : public Dispatcher {
 public:
  // Shuffles over `expert`, then dispatches by `inner`. `expert` and `clock` outlive the dispatcher.
  ShuffledDispatcher(std::unique_ptr<Dispatcher> inner, Communicator& expert, StepClock& clock, uint64_t seed)
      : inner_(std::move(inner)), expert_(expert), clock_(clock), seed_(seed) {}

  DispatchPlan plan(const Choices& choices) override;
  Arriving<ExpertRows()> begin_dispatch(const DispatchPlan& plan, const at::Tensor& token_TH,
                                        const at::Tensor& weight_TK) override;
  Combined begin_combine(const DispatchPlan& plan, at::Tensor row_RH) override;
  Arriving<at::Tensor()> begin_combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) override;
  DispatchedBack begin_dispatch_backward(const DispatchPlan& plan, ExpertRows grad) override;

 private:
  // Rows [T, ...] of this rank's tokens to their places, and rows of the places back, in the tokens' order.
  at::Tensor to_places(const DispatchPlan& plan, const at::Tensor& own) const;
  at::Tensor from_places(const DispatchPlan& plan, const at::Tensor& shuffled) const;
  // p(n) of all n; made anew when the number of tokens changes.
  const std::vector<int64_t>& permutation(int64_t tokens);

  std::unique_ptr<Dispatcher> inner_;
  Communicator& expert_;
  StepClock& clock_;
  uint64_t seed_;
  std::vector<int64_t> permutation_;
};

}  // namespace conclave
