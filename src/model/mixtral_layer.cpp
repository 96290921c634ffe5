#include "model/mixtral_layer.h"

#include "base/random.h"
#include "kernels/check.h"
#include "kernels/jitter.h"
#include "kernels/linear.h"
#include "kernels/rms_norm.h"
#include "kernels/values.h"
#include "memory/memory_category.h"

namespace conclave {

MixtralLayer::MixtralLayer(ModelConfig config, int64_t index, ExpertSelection& selection,
                           const ExpertCapacity* capacity, RoutedExperts& experts, LayerOptions options)
    : config_(std::move(config)),
      index_(index),
      selection_(selection),
      capacity_(capacity),
      experts_(experts),
      options_(options) {}

AttentionShape MixtralLayer::attention_shape(const MicroBatch& batch) const {
  return {batch.batch,      batch.sequence,        config_.num_attention_heads, config_.num_key_value_heads,
          config_.head_dim, config_.sliding_window};
}

void MixtralLayer::compute_attention(const LayerWeights& weights, const MicroBatch& batch, const RotaryTable& rotary,
                                     LayerState& state) const {
  const at::Tensor& input_TH = state.input_TH;
  const int64_t tokens = input_TH.size(0);
  const auto fp32 = input_TH.options().dtype(at::kFloat);
  at::Tensor normed_TH = at::empty_like(input_TH);
  MemoryScope scope(MemoryCategory::activations);
  state.input_rstd_T = at::empty({tokens}, fp32);
  rms_norm_forward(normed_TH, state.input_rstd_T, input_TH, weights.input_norm_H, config_.rms_norm_eps);
  state.qkv_TM = at::empty({tokens, weights.qkv_MH.size(0)}, input_TH.options());
  linear_forward(state.qkv_TM, normed_TH, weights.qkv_MH);
  rotary_forward_(state.qkv_TM, config_.num_attention_heads + config_.num_key_value_heads, config_.head_dim, rotary);
  state.attention_TN = at::empty({tokens, weights.output_HN.size(1)}, input_TH.options());
  state.logsumexp_BNS = at::empty({batch.batch, config_.num_attention_heads, batch.sequence}, fp32);
  attention_forward(state.attention_TN, state.logsumexp_BNS, state.qkv_TM, attention_shape(batch));
  state.hidden_TH = at::empty_like(input_TH);
  copy_values(state.hidden_TH, input_TH);
  linear_forward_add(state.hidden_TH, state.attention_TN, weights.output_HN);
}

void MixtralLayer::apply_jitter(at::Tensor normed_TH, const MicroBatch& batch) const {
  if (options_.jitter_noise == 0.0) return;
  jitter_(std::move(normed_TH),
          {options_.jitter_noise, options_.seed, random_stream("router_jitter." + std::to_string(index_)),
           batch.sequence, batch.sample_of_B});
}

at::Tensor MixtralLayer::normed_expert_input(Mode mode, const LayerWeights& weights, const MicroBatch& batch,
                                             LayerState& state) const {
  at::Tensor normed_TH = at::empty_like(state.hidden_TH);
  if (state.hidden_rstd_T.defined()) {
    rms_norm_repeat(normed_TH, state.hidden_TH, state.hidden_rstd_T, weights.post_attention_norm_H);
  } else {
    state.hidden_rstd_T = at::empty({normed_TH.size(0)}, normed_TH.options().dtype(at::kFloat));
    rms_norm_forward(normed_TH, state.hidden_rstd_T, state.hidden_TH, weights.post_attention_norm_H,
                     config_.rms_norm_eps);
  }
  if (mode == Mode::training) apply_jitter(normed_TH, batch);
  return normed_TH;
}

at::Tensor MixtralLayer::in_router_precision(const at::Tensor& operand) const {
  return options_.router == RouterPrecision::fp32 ? operand.to(wide_dtype(operand.scalar_type())) : operand;
}

at::Tensor MixtralLayer::router_logits(const at::Tensor& normed_TH, const at::Tensor& router_EH) const {
  const at::Tensor input_TH = in_router_precision(normed_TH);
  at::Tensor logits_TE = at::empty({input_TH.size(0), router_EH.size(0)}, input_TH.options());
  linear_forward(logits_TE, input_TH, in_router_precision(router_EH));
  return logits_TE;
}

void MixtralLayer::router_backward(const at::Tensor& grad_logits_TE, const at::Tensor& input_TH,
                                   const at::Tensor& router_EH, const Gradient& gradient_EH, at::Tensor grad_TH) const {
  linear_backward_weight(gradient_EH.tensor, grad_logits_TE, input_TH, gradient_EH.accumulate);
  at::Tensor sum_TH = in_router_precision(grad_TH);
  linear_backward_input_add(sum_TH, grad_logits_TE, in_router_precision(router_EH));
  if (!sum_TH.is_same(grad_TH)) grad_TH.copy_(sum_TH);
}

void MixtralLayer::compute_routing(Mode mode, const LayerWeights& weights, const at::Tensor& normed_TH,
                                   const MicroBatch& batch, LayerState& state) const {
  const at::Tensor logits_TE = router_logits(normed_TH, weights.router_EH);
  MemoryScope scope(MemoryCategory::activations);
  const at::Tensor& kept_choice_TK = state.routing.expert_of_choice_TK;
  if (kept_choice_TK.defined()) {
    state.routing = route_to(logits_TE, selection_.options(), kept_choice_TK);
    return;
  }
  const TokenNumbers numbers{batch.sample_of_B, batch.sequence};
  const bool training = mode == Mode::training;
  state.routing = training ? selection_.route_in_training(index_, logits_TE, numbers)
                           : selection_.route_in_evaluation(index_, logits_TE);
  state.dispatched_choice_TK =
      training && capacity_ != nullptr ? capacity_->apply(state.routing, numbers) : state.routing.expert_of_choice_TK;
}

Choices MixtralLayer::choices_of(const LayerState& state) const {
  return {state.dispatched_choice_TK, options_.assumed != nullptr ? options_.assumed->of_layer(index_) : nullptr};
}

at::Tensor MixtralLayer::run(Mode mode, const LayerWeights& weights, const MicroBatch& batch, const RotaryTable& rotary,
                             LayerState& state) const {
  compute_attention(weights, batch, rotary, state);
  const bool keep = mode == Mode::training && options_.checkpointing == ActivationCheckpointing::none;
  if (!keep) {  // nobody reads them any more
    state.qkv_TM.reset();
    state.attention_TN.reset();
    state.logsumexp_BNS.reset();
  }
  at::Tensor normed_TH = normed_expert_input(mode, weights, batch, state);
  compute_routing(mode, weights, normed_TH, batch, state);
  return experts_.forward({std::move(normed_TH), state.routing.weight_TK, choices_of(state)}, state.hidden_TH,
                          {weights.gate_up_LJH, weights.down_LHI}, keep ? PreActivation::kept : PreActivation::repeated,
                          state.parts);
}

at::Tensor MixtralLayer::forward(const LayerWeights& weights, at::Tensor input_TH, const MicroBatch& batch,
                                 const RotaryTable& rotary, LayerState& state, RoutingStatistics& statistics) const {
  state.input_TH = std::move(input_TH);
  at::Tensor output_TH = run(Mode::training, weights, batch, rotary, state);
  statistics = routing_statistics(state.routing, selection_.options());
  if (options_.checkpointing == ActivationCheckpointing::none) return output_TH;
  LayerState kept;
  kept.input_TH = state.input_TH;
  if (options_.checkpointing == ActivationCheckpointing::selective) {
    kept.hidden_rstd_T = state.hidden_rstd_T;
    kept.routing = state.routing;
    kept.parts = std::move(state.parts);
  } else {
    kept.routing.expert_of_choice_TK = state.routing.expert_of_choice_TK;
  }
  kept.dispatched_choice_TK = state.dispatched_choice_TK;
  state = std::move(kept);
  return output_TH;
}

at::Tensor MixtralLayer::evaluate(const LayerWeights& weights, at::Tensor input_TH, const MicroBatch& batch,
                                  const RotaryTable& rotary, RoutingStatistics& statistics) const {
  LayerState state;
  state.input_TH = std::move(input_TH);
  at::Tensor output_TH = run(Mode::evaluation, weights, batch, rotary, state);
  statistics = routing_statistics(state.routing, selection_.options());
  return output_TH;
}

at::Tensor MixtralLayer::backward(const LayerWeights& weights, LayerGradients gradients, at::Tensor grad_TH,
                                  const MicroBatch& batch, const RotaryTable& rotary,
                                  const RouterLossGradient& router_loss, LayerState state) const {
  if (!state.qkv_TM.defined()) compute_attention(weights, batch, rotary, state);

  // Experts and their routing.
  DispatchGradient grad_dispatch;
  {
    RoutedTokens tokens;
    if (RoutedExperts::needs_tokens(state.parts)) {
      tokens.token_TH = normed_expert_input(Mode::training, weights, batch, state);
      if (!state.routing.weight_TK.defined()) compute_routing(Mode::training, weights, tokens.token_TH, batch, state);
    }
    tokens.weight_TK = state.routing.weight_TK;
    tokens.choices = choices_of(state);
    ExpertGradients expert_gradients{gradients.gate_up_LJH, gradients.down_LHI};
    grad_dispatch = experts_.backward(std::move(tokens), grad_TH, {weights.gate_up_LJH, weights.down_LHI},
                                      expert_gradients, std::move(state.parts));
  }
  at::Tensor normed_TH = normed_expert_input(Mode::training, weights, batch, state);
  {
    const at::Tensor input_TH = in_router_precision(normed_TH);
    at::Tensor grad_logits_TE = at::empty(state.routing.score_TE.sizes(), input_TH.options());
    route_backward(grad_logits_TE, state.routing, selection_.options(), grad_dispatch.weight_TK,
                   router_loss.probability_E, router_loss.logsumexp_square);
    router_backward(grad_logits_TE, input_TH, weights.router_EH, gradients.router_EH, grad_dispatch.token_TH);
  }
  apply_jitter(grad_dispatch.token_TH, batch);
  rms_norm_backward(grad_TH, gradients.post_attention_norm_H.zeroed(), grad_dispatch.token_TH, state.hidden_TH,
                    state.hidden_rstd_T, weights.post_attention_norm_H);
  grad_dispatch = {};
  state.hidden_TH.reset();

  // Attention.
  at::Tensor grad_attention_TN = at::empty_like(state.attention_TN);
  linear_backward_input(grad_attention_TN, grad_TH, weights.output_HN);
  linear_backward_weight(gradients.output_HN.tensor, grad_TH, state.attention_TN, gradients.output_HN.accumulate);
  at::Tensor grad_qkv_TM = at::empty_like(state.qkv_TM);
  attention_backward(grad_qkv_TM, grad_attention_TN, state.attention_TN, state.logsumexp_BNS, state.qkv_TM,
                     attention_shape(batch));
  grad_attention_TN.reset();
  state.qkv_TM.reset();
  rotary_backward_(grad_qkv_TM, config_.num_attention_heads + config_.num_key_value_heads, config_.head_dim, rotary);
  rms_norm_repeat(normed_TH, state.input_TH, state.input_rstd_T, weights.input_norm_H);
  linear_backward_weight(gradients.qkv_MH.tensor, grad_qkv_TM, normed_TH, gradients.qkv_MH.accumulate);
  at::Tensor& grad_normed_TH = normed_TH;  // its memory, now that the value is used up
  linear_backward_input(grad_normed_TH, grad_qkv_TM, weights.qkv_MH);
  rms_norm_backward(grad_TH, gradients.input_norm_H.zeroed(), grad_normed_TH, state.input_TH, state.input_rstd_T,
                    weights.input_norm_H);
  return grad_TH;
}

}  // namespace conclave
