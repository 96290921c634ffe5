#include "model/shared_expert.h"

#include "kernels/linear.h"
#include "kernels/values.h"
#include "model/declarations.h"

namespace conclave {
namespace {

constexpr RouterOptions of_gate{.top_k = 1, .scores = RouterScores::sigmoid, .renormalize = false};

std::string name_of(const std::string& layer) {
  return layer + ".shared";
}

}  // namespace

void SharedExpert::declare(const ModelConfig& config, const SharedExpertConfig& shared, const std::string& layer,
                           UnitDeclaration& unit) {
  DenseMlp::declare(config, shared.intermediate, name_of(layer), unit);
  if (shared.gated) unit.parameters.push_back(matrix(config, name_of(layer) + ".gate", {1, config.hidden_size}));
}

SharedExpert::SharedExpert(const SharedExpertConfig& shared, const UnitDeclaration& unit)
    : mlp_(name_of(unit.name), unit) {
  if (shared.gated) gate_1H_.emplace(unit, name_of(unit.name) + ".gate");
}

Routing SharedExpert::gate(const UnitWeights& weights, const at::Tensor& normed_TH) const {
  const at::Tensor logit_T1 = at::empty({normed_TH.size(0), 1}, normed_TH.options());
  linear_forward(logit_T1, normed_TH, (*gate_1H_)(weights));
  return route(logit_T1, of_gate);
}

at::Tensor SharedExpert::forward(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                                 const MicroBatch& batch, PreActivation pre_activation, DenseMlpState& state) const {
  if (!gate_1H_) return mlp_.forward(weights, normed_TH, residual_TH, batch, pre_activation, state);
  return mlp_.forward_weighed(weights, {normed_TH, gate(weights, normed_TH).weight_TK.view({-1})}, residual_TH, batch,
                              pre_activation, state);
}

void SharedExpert::backward_add(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                                const Input& input, const MicroBatch& batch, DenseMlpState state,
                                const at::Tensor& grad_normed_TH) const {
  if (!gate_1H_) {
    add_values(grad_normed_TH, mlp_.backward(weights, gradients, grad_TH, input(), batch, std::move(state)));
    return;
  }
  at::Tensor normed_TH = input();
  const Routing gated = gate(weights, normed_TH);
  const ExpertRows grad = mlp_.backward_weighed(
      weights, gradients, grad_TH, {std::move(normed_TH), gated.weight_TK.view({-1})}, batch, std::move(state));
  add_values(grad_normed_TH, grad.row_RH);
  const at::Tensor again_TH = input();  // the other one became a gradient
  const at::Tensor grad_logit_T1 = at::empty(gated.score_TE.sizes(), again_TH.options());
  route_backward(grad_logit_T1, gated, of_gate, grad.weight_R.view({-1, 1}), {}, 0);
  const Gradient& gradient = (*gate_1H_)(gradients);
  if (gradient.is_wanted()) linear_backward_weight(gradient.tensor, grad_logit_T1, again_TH, gradient.accumulate);
  linear_backward_input_add(grad_normed_TH, grad_logit_T1, (*gate_1H_)(weights));
}

}  // namespace conclave
