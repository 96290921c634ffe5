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

namespace {

std::string router_of(const std::string& layer) {
  return layer + ".router";
}
std::string gate_up_of(const std::string& layer) {
  return layer + ".experts.gate_up";
}
std::string down_of(const std::string& layer) {
  return layer + ".experts.down";
}

void declare_adapters(const AdapterShape& shape, const MixtureConfig& mixture, int64_t hidden, const std::string& layer,
                      UnitDeclaration& unit) {
  const int64_t experts = mixture.experts, intermediate = mixture.intermediate;
  if (shape.router) declare_adapter(shape, {router_of(layer), experts, hidden}, unit);
  if (!shape.experts) return;
  declare_adapter(shape, {gate_up_of(layer), 2 * intermediate, hidden, experts}, unit);
  declare_adapter(shape, {down_of(layer), hidden, intermediate, experts}, unit);
}

std::optional<LowRankAdapter> adapter_of(const std::string& name, const UnitDeclaration& unit) {
  if (!has_adapter(unit, name)) return std::nullopt;
  return LowRankAdapter(name, 0, unit);
}

void add_adapter(const std::optional<LowRankAdapter>& adapter, const UnitWeights& weights,
                 std::vector<ExpertLowRank>& to) {
  if (!adapter) return;
  const LowRank matrices = adapter->matrices(weights);
  to.push_back({.a_LPM = matrices.a_PM, .b_LNP = matrices.b_NP, .scale = matrices.scale});
}

void add_adapter(const std::optional<LowRankAdapter>& adapter, UnitGradients& gradients,
                 std::vector<ExpertLowRankGradients>& to) {
  if (adapter) to.push_back({adapter->a_gradient(gradients), adapter->b_gradient(gradients)});
}

}  // namespace

void Mixture::declare(const ModelConfig& config, const MixtureConfig& mixture, const std::string& layer,
                      UnitDeclaration& unit) {
  const int64_t experts = mixture.experts, hidden = config.hidden_size, intermediate = mixture.intermediate;
  unit.parameters.push_back(matrix(config, router_of(layer), {experts, hidden}));
  const auto expert_matrix = [&](std::string name, int64_t outputs, int64_t inputs) {
    std::vector<int64_t> shape = {experts, outputs, inputs};
    if (mixture.input_major) std::swap(shape[1], shape[2]);
    unit.parameters.push_back(matrix(config, std::move(name), std::move(shape), ParameterKind::expert));
  };
  expert_matrix(gate_up_of(layer), 2 * intermediate, hidden);
  expert_matrix(down_of(layer), hidden, intermediate);
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
  if (config.adapter) declare_adapters(*config.adapter, mixture, hidden, layer, unit);
}

Mixture::Mixture(const MixtureConfig& mixture, const Place& place, const UnitDeclaration& unit,
                 const MixtureOptions& options)
    : place_(place),
      options_(options),
      router_EH_(unit, router_of(unit.name)),
      gate_up_LJH_(unit, gate_up_of(unit.name)),
      down_LHI_(unit, down_of(unit.name)),
      of_router_(adapter_of(router_of(unit.name), unit)),
      of_gate_up_(adapter_of(gate_up_of(unit.name), unit)),
      of_down_(adapter_of(down_of(unit.name), unit)) {
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
  add_adapter(of_gate_up_, weights, of_experts.gate_up_low_rank);
  add_adapter(of_down_, weights, of_experts.down_low_rank);
  return of_experts;
}

ExpertGradients Mixture::expert_gradients(UnitGradients& gradients) const {
  ExpertGradients of_experts{gate_up_LJH_(gradients), down_LHI_(gradients)};
  if (gate_up_bias_LJ_) {
    of_experts.gate_up_bias_LJ = (*gate_up_bias_LJ_)(gradients);
    of_experts.down_bias_LH = (*down_bias_LH_)(gradients);
  }
  add_adapter(of_gate_up_, gradients, of_experts.gate_up_low_rank);
  add_adapter(of_down_, gradients, of_experts.down_low_rank);
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

LowRank Mixture::router_adapter(const UnitWeights& weights) const {
  LowRank matrices = of_router_->matrices(weights);
  matrices.a_PM = in_router_precision(matrices.a_PM);
  matrices.b_NP = in_router_precision(matrices.b_NP);
  return matrices;
}

at::Tensor Mixture::router_logits(const UnitWeights& weights, const at::Tensor& normed_TH) const {
  const at::Tensor input_TH = in_router_precision(normed_TH);
  const at::Tensor& router_EH = router_EH_(weights);
  at::Tensor logits_TE = at::empty({input_TH.size(0), router_EH.size(0)}, input_TH.options());
  linear_forward(logits_TE, input_TH, in_router_precision(router_EH));
  if (of_router_) low_rank_forward_add(logits_TE, input_TH, router_adapter(weights));
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
  if (of_router_) {
    const LowRank matrices = router_adapter(weights);
    const at::Tensor grad_inner_TP = low_rank_backward_inner(grad_logits_TE, matrices);
    low_rank_backward_weights(of_router_->a_gradient(gradients), of_router_->b_gradient(gradients), grad_logits_TE,
                              grad_inner_TP, input_TH, matrices);
    low_rank_backward_input_add(sum_TH, grad_inner_TP, matrices);
  }
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
      shared_ ? shared_->forward(weights, normed_TH, residual_TH, batch, pre_activation, state.shared) : residual_TH;
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
    shared_->backward_add(weights, gradients, grad_TH, jittered, batch, std::move(state.shared),
                          grad_dispatch.token_TH);
  const at::Tensor input_TH = in_router_precision(jittered());
  at::Tensor grad_logits_TE = at::empty(state.routing.score_TE.sizes(), input_TH.options());
  route_backward(grad_logits_TE, state.routing, options_.selection.options(), grad_dispatch.weight_TK,
                 router_loss.probability_E, router_loss.logsumexp_square);
  router_backward(weights, gradients, grad_logits_TE, input_TH, grad_dispatch.token_TH);
  apply_jitter(grad_dispatch.token_TH, batch);
  return std::move(grad_dispatch.token_TH);
}

}  // namespace conclave
