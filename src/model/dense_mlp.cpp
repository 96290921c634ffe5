#include "model/dense_mlp.h"

#include "memory/memory_category.h"
#include "model/declarations.h"

namespace conclave {
namespace {

ExpertRows all_tokens(at::Tensor normed_TH) {
  at::Tensor weight_T = at::ones({normed_TH.size(0)}, normed_TH.options().dtype(at::kFloat));
  return {std::move(normed_TH), std::move(weight_T)};
}

Gradient as_one_expert(const Gradient& gradient) {
  return gradient.is_wanted() ? Gradient{gradient.tensor.unsqueeze(0), gradient.accumulate} : Gradient{};
}

}  // namespace

void DenseMlp::declare(const ModelConfig& config, int64_t intermediate, const std::string& name,
                       UnitDeclaration& unit) {
  unit.parameters.push_back(matrix(config, name + ".gate_up", {2 * intermediate, config.hidden_size}));
  unit.parameters.push_back(matrix(config, name + ".down", {config.hidden_size, intermediate}));
}

DenseMlp::DenseMlp(const std::string& name, const UnitDeclaration& unit)
    : gate_up_JH_(unit, name + ".gate_up"), down_HI_(unit, name + ".down") {}

ExpertWeights DenseMlp::as_expert(const UnitWeights& weights) const {
  return {gate_up_JH_(weights).unsqueeze(0), down_HI_(weights).unsqueeze(0)};
}

at::Tensor DenseMlp::forward(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                             PreActivation pre_activation, DenseMlpState& state) const {
  return forward_weighed(weights, all_tokens(normed_TH), residual_TH, pre_activation, state);
}

at::Tensor DenseMlp::forward_weighed(const UnitWeights& weights, const ExpertRows& tokens,
                                     const at::Tensor& residual_TH, PreActivation pre_activation,
                                     DenseMlpState& state) const {
  ExpertOutput output = experts_forward(tokens, {tokens.row_RH.size(0)}, as_expert(weights), pre_activation);
  state.gate_up_TJ = std::move(output.gate_up_RJ);
  MemoryScope scope(MemoryCategory::activations);
  return residual_TH + output.row_RH;
}

at::Tensor DenseMlp::backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                              at::Tensor normed_TH, DenseMlpState state) const {
  return backward_weighed(weights, gradients, grad_TH, all_tokens(std::move(normed_TH)), std::move(state)).row_RH;
}

ExpertRows DenseMlp::backward_weighed(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                                      ExpertRows tokens, DenseMlpState state) const {
  ExpertGradients as_experts{as_one_expert(gate_up_JH_(gradients)), as_one_expert(down_HI_(gradients))};
  const int64_t count = tokens.row_RH.size(0);
  return experts_backward(grad_TH, std::move(tokens), std::move(state.gate_up_TJ), {count}, as_expert(weights),
                          as_experts);
}

}  // namespace conclave
