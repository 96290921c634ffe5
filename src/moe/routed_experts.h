// From routed tokens to what the experts make of them, and back: dispatch, experts, combine, in one or several parts of
// the tokens. Several parts either overlap, so that the rows of one travel while the experts compute another
// (moe.dispatch_chunks), or follow each other, so that a rank which too many tokens want never holds the rows of all of
// them (moe.overload: chunk).
#pragma once

#include <memory>
#include <vector>

#include "moe/dispatcher.h"
#include "moe/experts.h"
#include "moe/token_parts.h"

namespace conclave {

struct RoutedTokens {
  at::Tensor token_TH;   // in the compute dtype
  at::Tensor weight_TK;  // fp32
  Choices choices;
};

// What backward finds of one part. Plans of all parts are the same number on all ranks of an expert group.
struct RoutedPart {
  TokenPart tokens;
  DispatchPlan plan;
  ExpertRows rows;        // undefined when not kept: then they are dispatched once more
  at::Tensor gate_up_RJ;  // the experts' pre-activation; undefined when not kept
};

class RoutedExperts {
 public:
  // `expert`: the expert axis; `clock`: learns how long rows were waited for. Both outlive it. `experts`: of the whole
  // layer.
  RoutedExperts(Communicator& expert, int64_t experts, const DispatchSettings& settings, StepClock& clock);

  using Parts = std::vector<RoutedPart>;

  // residual [T,H], if defined, + the sum of the choices' weighted expert outputs. `parts` receives what backward
  // needs; rows and plans are there whatever the policy, unless parts follow each other. Lets the tokens go as soon as
  // they are sent.
  at::Tensor forward(RoutedTokens tokens, const at::Tensor& residual_TH, const ExpertWeights& weights,
                     PreActivation pre_activation, Parts& parts) const;

  // Whether backward will ask for the tokens themselves. No part at all: nothing was kept, not even the plans.
  static bool needs_tokens(const Parts& parts);

  // The gradient of tokens and weights from that of the output, and those of the experts into `gradients`. `tokens`:
  // token_TH only where needs_tokens().
  DispatchGradient backward(RoutedTokens tokens, const at::Tensor& grad_TH, const ExpertWeights& weights,
                            ExpertGradients& gradients, Parts parts) const;

 private:
  Parts plan_parts(const Choices& choices) const;
  // The functions that compute these rows.
  struct Functions {
    decltype(&experts_forward) forward;
    decltype(&experts_backward) backward;
  };
  Functions functions_for(const ExpertRows& rows, const ExpertWeights& weights) const;
  bool divides_overload() const { return settings_.overload == OverloadPolicy::chunk; }
  bool follow_each_other(const Parts& parts) const { return parts.size() == 1 || divides_overload(); }

  Communicator& expert_;
  int64_t experts_;
  DispatchSettings settings_;
  StepClock& clock_;
  std::unique_ptr<Dispatcher> dispatcher_;
};

}  // namespace conclave
