#include "model/mixture.h"

#include "base/random.h"
#include "kernels/bias.h"
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
  const auto expert_matrix = [&](const char* name, int64_t outputs, int64_t inputs) {
    std::vector<int64_t> shape = {experts, outputs, inputs};
    if (mixture.input_major) std::swap(shape[1], shape[2]);
    unit.parameters.push_back(matrix(config, layer + name, std::move(shape), ParameterKind::expert));
  };
  expert_matrix(".experts.gate_up", 2 * intermediate, hidden);
  expert_matrix(".experts.down", hidden, intermediate);
  if (mixture.router_bias) unit.parameters.push_back(bias(layer + ".router_bias", {experts}));
  if (mixture.selection_bias) {
    unit.parameters.push_back(bias(layer + ".selection_bias", {experts}));
    unit.parameters.back().trained = false;
  }
  if (mixture.expert_biases) {
    unit.parameters.push_back(
        bias(layer + ".experts.gate_up_bias", {experts, 2 * intermediate}, ParameterKind::expert));
    unit.parameters.push_back(bias(layer + ".experts.down_bias", {experts, hidden}, ParameterKind::expert));
  }
  if (mixture.shared) SharedExpert::declare(config, *mixture.shared, layer, unit);
}

Mixture::Mixture(const MixtureConfig& mixture, const Place& place, const UnitDeclaration& unit,
                 const MixtureOptions& options)
    : place_(place),
      options_(options),
      router_EH_(unit, unit.name + ".router"),
      gate_up_LJH_(unit, unit.name + ".experts.gate_up"),
      down_LHI_(unit, unit.name + ".experts.down") {
  if (mixture.input_major) form_.matrices = ExpertMatrices::input_major;
  if (mixture.activation == MixtureConfig::Activation::clamped_swiglu)
    form_.clamped = ClampedSwiglu{mixture.clamp_limit, mixture.clamp_alpha};
  if (mixture.router_bias) router_bias_E_.emplace(unit, unit.name + ".router_bias");
  if (mixture.selection_bias) selection_bias_E_.emplace(unit, unit.name + ".selection_bias");
  if (mixture.expert_biases) {
    gate_up_bias_LJ_.emplace(unit, unit.name + ".experts.gate_up_bias");
    down_bias_LH_.emplace(unit, unit.name + ".experts.down_bias");
  }
  if (mixture.shared) shared_.emplace(*mixture.shared, unit);
}

ExpertWeights Mixture::expert_weights(const UnitWeights& weights) const {
  ExpertWeights of_experts{gate_up_LJH_(weights), down_LHI_(weights)};
  of_experts.form = form_;
  if (gate_up_bias_LJ_) {
    of_experts.gate_up_bias_LJ = (*gate_up_bias_LJ_)(weights);
    of_experts.down_bias_LH = (*down_bias_LH_)(weights);
  }
  return of_experts;
}

ExpertGradients Mixture::expert_gradients(UnitGradients& gradients) const {
  ExpertGradients of_experts{gate_up_LJH_(gradients), down_LHI_(gradients)};
  if (gate_up_bias_LJ_) {
    of_experts.gate_up_bias_LJ = (*gate_up_bias_LJ_)(gradients);
    of_experts.down_bias_LH = (*down_bias_LH_)(gradients);
  }
  return of_experts;
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

at::Tensor Mixture::router_logits(const UnitWeights& weights, const at::Tensor& normed_TH) const {
  const at::Tensor input_TH = in_router_precision(normed_TH);
  const at::Tensor& router_EH = router_EH_(weights);
  at::Tensor logits_TE = at::empty({input_TH.size(0), router_EH.size(0)}, input_TH.options());
  linear_forward(logits_TE, input_TH, in_router_precision(router_EH));
  if (router_bias_E_) add_bias(logits_TE, in_router_precision((*router_bias_E_)(weights)).unsqueeze(0));
  return logits_TE;
}

void Mixture::router_backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_logits_TE,
                              const at::Tensor& input_TH, at::Tensor grad_TH) const {
  const Gradient& of_router = router_EH_(gradients);
  if (of_router.is_wanted()) linear_backward_weight(of_router.tensor, grad_logits_TE, input_TH, of_router.accumulate);
  if (router_bias_E_) {
    const Gradient& of_bias = (*router_bias_E_)(gradients);
    if (of_bias.is_wanted()) bias_backward(of_bias.tensor.unsqueeze(0), grad_logits_TE, of_bias.accumulate);
  }
  if (selection_bias_E_) (*selection_bias_E_)(gradients).zeroed();  // choices are constants
  at::Tensor sum_TH = in_router_precision(grad_TH);
  linear_backward_input_add(sum_TH, grad_logits_TE, in_router_precision(router_EH_(weights)));
  if (!sum_TH.is_same(grad_TH)) grad_TH.copy_(sum_TH);
}

void Mixture::compute_routing(Mode mode, const UnitWeights& weights, const at::Tensor& normed_TH,
                              const MicroBatch& batch, MixtureState& state) const {
  const at::Tensor logits_TE = router_logits(weights, normed_TH);
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
  const at::Tensor base_TH =
      shared_ ? shared_->forward(weights, normed_TH, residual_TH, pre_activation, state.shared) : residual_TH;
  return options_.experts.forward({std::move(normed_TH), state.routing.weight_TK, choices_of(state)}, base_TH,
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
    ExpertGradients of_experts = expert_gradients(gradients);
    grad_dispatch = options_.experts.backward(std::move(tokens), grad_TH, expert_weights(weights), of_experts,
                                              std::move(state.parts));
  }
  if (shared_)
    shared_->backward_add(weights, gradients, grad_TH, jittered, std::move(state.shared), grad_dispatch.token_TH);
  const at::Tensor input_TH = in_router_precision(jittered());
  at::Tensor grad_logits_TE = at::empty(state.routing.score_TE.sizes(), input_TH.options());
  route_backward(grad_logits_TE, state.routing, options_.selection.options(), grad_dispatch.weight_TK,
                 router_loss.probability_E, router_loss.logsumexp_square);
  router_backward(weights, gradients, grad_logits_TE, input_TH, grad_dispatch.token_TH);
  apply_jitter(grad_dispatch.token_TH, batch);
  return std::move(grad_dispatch.token_TH);
}

}  // namespace conclave
