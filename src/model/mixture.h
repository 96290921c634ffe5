// A mixture of experts: a router chooses some of them for each token, whose outputs are weighed and added up.
#pragma once

#include <functional>

#include "config/job.h"
#include "config/model_config.h"
#include "kernels/router.h"
#include "model/low_rank_adapter.h"
#include "model/micro_batch.h"
#include "model/shared_expert.h"
#include "model/unit_tensors.h"
#include "moe/capacity.h"
#include "moe/expert_selection.h"
#include "moe/routed_experts.h"

namespace conclave {

// Between forward and backward. Of the routing, a policy that keeps nothing else keeps the choices: a few bytes a
// token, and what asks other ranks (balancing rules, capacity) asks once. The experts' pre-activation is in the parts.
struct MixtureState {
  Routing routing;
  at::Tensor dispatched_choice_TK;  // the routing's choices, or with a capacity those that are not dropped
  RoutedExperts::Parts parts;
  DenseMlpState shared;  // of the shared expert

  MixtureState choices_alone() const;
};

// What the balancing losses add to the gradient of a layer's router, their coefficients included (moe/balancing.h).
struct RouterLossGradient {
  at::Tensor probability_E;  // fp32
  double logsumexp_square = 0;
};

// What is the same for all mixtures of a run. The references outlive them.
struct MixtureOptions {
  ExpertSelection& selection;
  const ExpertCapacity* capacity = nullptr;  // null: no token is ever dropped
  RoutedExperts& experts;
  RouterPrecision router = RouterPrecision::fp32;
  double jitter_noise = 0;  // of what router and experts see, in training only
  uint64_t seed = 0;
  const AssumedChoices* assumed = nullptr;  // on paper, where nobody chooses
};

enum class Mode { training, evaluation };  // evaluation: without jitter, and no token is dropped

class Mixture {
 public:
  // The normalized input, made anew at each call, to the same bits.
  using Input = SharedExpert::Input;

  // Parameters are called `layer`.router, `layer`.experts.gate_up, `layer`.experts.down; where the mixture has them,
  // `layer`.router_bias, `layer`.selection_bias (which no gradient reaches: step/selection_bias.h),
  // `layer`.experts.gate_up_bias, `layer`.experts.down_bias and those of a shared expert. Adapters are those of
  // `layer`.router, `layer`.experts.gate_up and `layer`.experts.down.
  static void declare(const ModelConfig& config, const MixtureConfig& mixture, const std::string& layer,
                      UnitDeclaration& unit);
  // `place`: of the layer among all, and of the mixture among the mixtures.
  struct Place {
    int64_t layer = 0;
    int64_t mixture = 0;
  };
  Mixture(const MixtureConfig& mixture, const Place& place, const UnitDeclaration& unit, const MixtureOptions& options);

  // residual [T,H] + the experts' outputs.
  at::Tensor forward(Mode mode, const UnitWeights& weights, at::Tensor normed_TH, const at::Tensor& residual_TH,
                     const MicroBatch& batch, PreActivation pre_activation, MixtureState& state) const;
  RoutingStatistics statistics(const MixtureState& state) const;
  // grad [T,H] with respect to the output; returns the gradient with respect to the normalized input.
  at::Tensor backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                      const Input& input, const MicroBatch& batch, const RouterLossGradient& router_loss,
                      MixtureState state) const;

 private:
  // The operands of the router's products: rounded to the compute dtype already, so that fp32 only keeps from rounding
  // what they give.
  at::Tensor in_router_precision(const at::Tensor& operand) const;
  LowRank router_adapter(const UnitWeights& weights) const;
  at::Tensor router_logits(const UnitWeights& weights, const at::Tensor& normed_TH) const;
  // Adds the input's gradient to grad_TH.
  void router_backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_logits_TE,
                       const at::Tensor& input_TH, at::Tensor grad_TH) const;
  void compute_routing(Mode mode, const UnitWeights& weights, const at::Tensor& normed_TH, const MicroBatch& batch,
                       MixtureState& state) const;
  Choices choices_of(const MixtureState& state) const;
  void apply_jitter(at::Tensor normed_TH, const MicroBatch& batch) const;
  ExpertWeights expert_weights(const UnitWeights& weights) const;
  ExpertGradients expert_gradients(UnitGradients& gradients) const;

  Place place_;
  MixtureOptions options_;
  ParameterSlot router_EH_;
  ParameterSlot gate_up_LJH_;  // J = 2 I
  ParameterSlot down_LHI_;
  ExpertForm form_;
  std::optional<ParameterSlot> router_bias_E_, selection_bias_E_, gate_up_bias_LJ_, down_bias_LH_;
  std::optional<SharedExpert> shared_;
  std::optional<LowRankAdapter> of_router_, of_gate_up_, of_down_;
};

}  // namespace conclave
