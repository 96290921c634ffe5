#include "model/mixture.h"

#include "base/random.h"
#include "kernels/check.h"
#include "kernels/jitter.h"
#include "kernels/linear.h"
#include "kernels/values.h"
#include "memory/memory_category.h"
#include "model/declarations.h"

namespace conclave {

MixtureState MixtureState::choices_alone() const {
  MixtureState kept;
  kept.routing.expert_of_choice_TK = routing.expert_of_choice_TK;
  kept.dispatched_choice_TK = dispatched_choice_TK;
  return kept;
}

void Mixture::declare(const ModelConfig& config, const MixtureConfig& mixture, const std::string& layer,
                      UnitDeclaration& unit) {
  const int64_t experts = mixture.experts, hidden = config.hidden_size, intermediate = mixture.intermediate;
  unit.parameters.push_back(matrix(config, layer + ".router", {experts, hidden}));
  unit.parameters.push_back(
      matrix(config, layer + ".experts.gate_up", {experts, 2 * intermediate, hidden}, ParameterKind::expert));
  unit.parameters.push_back(
      matrix(config, layer + ".experts.down", {experts, hidden, intermediate}, ParameterKind::expert));
}

Mixture::Mixture(const Place& place, const UnitDeclaration& unit, const MixtureOptions& options)
    : place_(place),
      options_(options),
      router_EH_(unit, unit.name + ".router"),
      gate_up_LJH_(unit, unit.name + ".experts.gate_up"),
      down_LHI_(unit, unit.name + ".experts.down") {}

ExpertWeights Mixture::expert_weights(const UnitWeights& weights) const {
  return {gate_up_LJH_(weights), down_LHI_(weights)};
}

void Mixture::apply_jitter(at::Tensor normed_TH, const MicroBatch& batch) const {
  if (options_.jitter_noise == 0.0) return;
  jitter_(std::move(normed_TH),
          {options_.jitter_noise, options_.seed, random_stream("router_jitter." + std::to_string(place_.layer)),
           batch.sequence, batch.sample_of_B});
}

at::Tensor Mixture::in_router_precision(const at::Tensor& operand) const {
  return options_.router == RouterPrecision::fp32 ? operand.to(wide_dtype(operand.scalar_type())) : operand;
}

at::Tensor Mixture::router_logits(const at::Tensor& normed_TH, const at::Tensor& router_EH) const {
  const at::Tensor input_TH = in_router_precision(normed_TH);
  at::Tensor logits_TE = at::empty({input_TH.size(0), router_EH.size(0)}, input_TH.options());
  linear_forward(logits_TE, input_TH, in_router_precision(router_EH));
  return logits_TE;
}

void Mixture::router_backward(const at::Tensor& grad_logits_TE, const at::Tensor& input_TH, const at::Tensor& router_EH,
                              const Gradient& gradient_EH, at::Tensor grad_TH) const {
  linear_backward_weight(gradient_EH.tensor, grad_logits_TE, input_TH, gradient_EH.accumulate);
  at::Tensor sum_TH = in_router_precision(grad_TH);
  linear_backward_input_add(sum_TH, grad_logits_TE, in_router_precision(router_EH));
  if (!sum_TH.is_same(grad_TH)) grad_TH.copy_(sum_TH);
}

void Mixture::compute_routing(Mode mode, const UnitWeights& weights, const at::Tensor& normed_TH,
                              const MicroBatch& batch, MixtureState& state) const {
  const at::Tensor logits_TE = router_logits(normed_TH, router_EH_(weights));
  MemoryScope scope(MemoryCategory::activations);
  const at::Tensor& kept_choice_TK = state.routing.expert_of_choice_TK;
  if (kept_choice_TK.defined()) {
    state.routing = route_to(logits_TE, options_.selection.options(), kept_choice_TK);
    return;
  }
  const TokenNumbers numbers{batch.sample_of_B, batch.sequence};
  const bool training = mode == Mode::training;
  state.routing = training ? options_.selection.route_in_training(place_.mixture, logits_TE, numbers)
                           : options_.selection.route_in_evaluation(place_.mixture, logits_TE);
  state.dispatched_choice_TK = training && options_.capacity != nullptr
                                   ? options_.capacity->apply(state.routing, numbers)
                                   : state.routing.expert_of_choice_TK;
}

Choices Mixture::choices_of(const MixtureState& state) const {
  return {state.dispatched_choice_TK,
          options_.assumed != nullptr ? options_.assumed->of_layer(place_.mixture) : nullptr};
}

at::Tensor Mixture::forward(Mode mode, const UnitWeights& weights, at::Tensor normed_TH, const at::Tensor& residual_TH,
                            const MicroBatch& batch, PreActivation pre_activation, MixtureState& state) const {
  if (mode == Mode::training) apply_jitter(normed_TH, batch);
  compute_routing(mode, weights, normed_TH, batch, state);
  return options_.experts.forward({std::move(normed_TH), state.routing.weight_TK, choices_of(state)}, residual_TH,
                                  expert_weights(weights), pre_activation, state.parts);
}

RoutingStatistics Mixture::statistics(const MixtureState& state) const {
  return routing_statistics(state.routing, options_.selection.options());
}

at::Tensor Mixture::backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                             const Input& input, const MicroBatch& batch, const RouterLossGradient& router_loss,
                             MixtureState state) const {
  const auto jittered = [&] {
    at::Tensor normed_TH = input();
    apply_jitter(normed_TH, batch);
    return normed_TH;
  };
  DispatchGradient grad_dispatch;
  {
    RoutedTokens tokens;
    if (RoutedExperts::needs_tokens(state.parts)) {
      tokens.token_TH = jittered();
      if (!state.routing.weight_TK.defined()) compute_routing(Mode::training, weights, tokens.token_TH, batch, state);
    }
    tokens.weight_TK = state.routing.weight_TK;
    tokens.choices = choices_of(state);
    ExpertGradients of_experts{gate_up_LJH_(gradients), down_LHI_(gradients)};
    grad_dispatch = options_.experts.backward(std::move(tokens), grad_TH, expert_weights(weights), of_experts,
                                              std::move(state.parts));
  }
  const at::Tensor input_TH = in_router_precision(jittered());
  at::Tensor grad_logits_TE = at::empty(state.routing.score_TE.sizes(), input_TH.options());
  route_backward(grad_logits_TE, state.routing, options_.selection.options(), grad_dispatch.weight_TK,
                 router_loss.probability_E, router_loss.logsumexp_square);
  router_backward(grad_logits_TE, input_TH, router_EH_(weights), router_EH_(gradients), grad_dispatch.token_TH);
  apply_jitter(grad_dispatch.token_TH, batch);
  return std::move(grad_dispatch.token_TH);
}

}  // namespace conclave
