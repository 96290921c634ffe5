// One decoder layer of Mixtral: attention and a mixture-of-experts block, each on a normalized input and added to the
// residual stream. Forward and backward are explicit; what lies between them is LayerState, and a recomputation policy
// is which of its fields are kept.
#pragma once

#include "config/job.h"
#include "config/model_config.h"
#include "kernels/attention.h"
#include "kernels/rotary.h"
#include "kernels/router.h"
#include "model/layer_slots.h"
#include "model/micro_batch.h"
#include "moe/capacity.h"
#include "moe/expert_selection.h"
#include "moe/routed_experts.h"

namespace conclave {

// What a layer remembers from forward to backward. Undefined fields are computed again from `input`, to the same bits.
struct LayerState {
  at::Tensor input_TH;

  // Kept by `none` only.
  at::Tensor input_rstd_T;
  at::Tensor qkv_TM;  // rotated
  at::Tensor attention_TN;
  at::Tensor logsumexp_BNS;
  at::Tensor hidden_TH;  // the residual stream between attention and experts

  // Kept by `none` and `selective`: so recomputation neither routes nor communicates. Of the routing, `full` keeps the
  // choices: a few bytes a token, and what asks other ranks (balancing rules, capacity) asks once. The experts'
  // pre-activation is in the parts, and kept by `none` only.
  at::Tensor hidden_rstd_T;
  Routing routing;
  at::Tensor dispatched_choice_TK;  // the routing's choices, or with a capacity those that are not dropped
  RoutedExperts::Parts parts;
};

// What the balancing losses add to the gradient of a layer's router, their coefficients included (moe/balancing.h).
struct RouterLossGradient {
  at::Tensor probability_E;  // fp32
  double logsumexp_square = 0;
};

// What is the same for all layers of a run.
struct LayerOptions {
  ActivationCheckpointing checkpointing = ActivationCheckpointing::none;
  RouterPrecision router = RouterPrecision::fp32;
  double jitter_noise = 0;  // in training only
  uint64_t seed = 0;
  const AssumedChoices* assumed = nullptr;  // on paper, where nobody chooses; outlives the layers
};

class MixtralLayer {
 public:
  // `selection`, `capacity` and `experts` outlive the layer. A null capacity: no token is ever dropped.
  MixtralLayer(ModelConfig config, int64_t index, ExpertSelection& selection, const ExpertCapacity* capacity,
               RoutedExperts& experts, LayerOptions options);

  // The output [T,H]. `state` receives what backward needs, by policy; `statistics` what balancing needs.
  at::Tensor forward(const LayerWeights& weights, at::Tensor input_TH, const MicroBatch& batch,
                     const RotaryTable& rotary, LayerState& state, RoutingStatistics& statistics) const;
  // The output alone, without jitter and dropping no token, keeping nothing.
  at::Tensor evaluate(const LayerWeights& weights, at::Tensor input_TH, const MicroBatch& batch,
                      const RotaryTable& rotary, RoutingStatistics& statistics) const;
  // grad [T,H] with respect to the output becomes, in place, the gradient with respect to the input, and is returned.
  at::Tensor backward(const LayerWeights& weights, LayerGradients gradients, at::Tensor grad_TH,
                      const MicroBatch& batch, const RotaryTable& rotary, const RouterLossGradient& router_loss,
                      LayerState state) const;

 private:
  enum class Mode { training, evaluation };
  at::Tensor run(Mode mode, const LayerWeights& weights, const MicroBatch& batch, const RotaryTable& rotary,
                 LayerState& state) const;
  void compute_attention(const LayerWeights& weights, const MicroBatch& batch, const RotaryTable& rotary,
                         LayerState& state) const;
  // What router and experts see: hidden normalized, with jitter in training. The same bits every time.
  at::Tensor normed_expert_input(Mode mode, const LayerWeights& weights, const MicroBatch& batch,
                                 LayerState& state) const;
  // The operands of the router's products: rounded to the compute dtype already, so that fp32 only keeps from rounding
  // what they give.
  at::Tensor in_router_precision(const at::Tensor& operand) const;
  at::Tensor router_logits(const at::Tensor& normed_TH, const at::Tensor& router_EH) const;
  // Adds the input's gradient to grad_TH.
  void router_backward(const at::Tensor& grad_logits_TE, const at::Tensor& input_TH, const at::Tensor& router_EH,
                       const Gradient& gradient_EH, at::Tensor grad_TH) const;
  void compute_routing(Mode mode, const LayerWeights& weights, const at::Tensor& normed_TH, const MicroBatch& batch,
                       LayerState& state) const;
  Choices choices_of(const LayerState& state) const;
  void apply_jitter(at::Tensor normed_TH, const MicroBatch& batch) const;
  AttentionShape attention_shape(const MicroBatch& batch) const;

  ModelConfig config_;
  int64_t index_;
  ExpertSelection& selection_;
  const ExpertCapacity* capacity_;
  RoutedExperts& experts_;
  LayerOptions options_;
};

}  // namespace conclave
