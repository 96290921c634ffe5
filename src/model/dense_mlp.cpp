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

std::vector<ExpertLowRank> as_one_expert(const std::vector<LowRankAdapter>& adapters, const UnitWeights& weights,
                                         const MicroBatch& batch) {
  std::vector<ExpertLowRank> of_expert;
  for (const LowRankAdapter& adapter : adapters) {
    const LowRank matrices = adapter.matrices(weights);
    of_expert.push_back({.a_LPM = matrices.a_PM.unsqueeze(0),
                         .b_LNP = matrices.b_NP.unsqueeze(0),
                         .first = adapter.first(),
                         .scale = matrices.scale,
                         .dropout = adapter.dropout_of(batch)});
  }
  return of_expert;
}

std::vector<ExpertLowRankGradients> as_one_expert(const std::vector<LowRankAdapter>& adapters,
                                                  UnitGradients& gradients) {
  std::vector<ExpertLowRankGradients> of_expert;
  for (const LowRankAdapter& adapter : adapters)
    of_expert.push_back({as_one_expert(adapter.a_gradient(gradients)), as_one_expert(adapter.b_gradient(gradients))});
  return of_expert;
}

constexpr const char* halves[] = {"gate", "up"};

}  // namespace

void DenseMlp::declare(const ModelConfig& config, int64_t intermediate, const std::string& name,
                       UnitDeclaration& unit) {
  unit.parameters.push_back(matrix(config, name + ".gate_up", {2 * intermediate, config.hidden_size}));
  unit.parameters.push_back(matrix(config, name + ".down", {config.hidden_size, intermediate}));
  for (const char* half : halves)
    if (const std::string part = name + ".gate_up." + half; is_adapted(config, unit, part))
      declare_adapter(*config.adapter, {part, intermediate, config.hidden_size}, unit);
  if (is_adapted(config, unit, name + ".down"))
    declare_adapter(*config.adapter, {name + ".down", config.hidden_size, intermediate}, unit);
}

DenseMlp::DenseMlp(const std::string& name, const UnitDeclaration& unit)
    : gate_up_JH_(unit, name + ".gate_up"), down_HI_(unit, name + ".down") {
  int64_t first = 0;
  for (const char* half : halves) {
    if (const std::string part = name + ".gate_up." + half; has_adapter(unit, part))
      of_gate_up_.emplace_back(part, first, unit);
    first += gate_up_JH_.declared(unit).shape.at(0) / 2;
  }
  if (has_adapter(unit, name + ".down")) of_down_.emplace_back(name + ".down", 0, unit);
}

ExpertWeights DenseMlp::as_expert(const UnitWeights& weights, const MicroBatch& batch) const {
  ExpertWeights expert{gate_up_JH_(weights).unsqueeze(0), down_HI_(weights).unsqueeze(0)};
  expert.gate_up_low_rank = as_one_expert(of_gate_up_, weights, batch);
  expert.down_low_rank = as_one_expert(of_down_, weights, batch);
  return expert;
}

at::Tensor DenseMlp::forward(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                             const MicroBatch& batch, PreActivation pre_activation, DenseMlpState& state) const {
  return forward_weighed(weights, all_tokens(normed_TH), residual_TH, batch, pre_activation, state);
}

at::Tensor DenseMlp::forward_weighed(const UnitWeights& weights, const ExpertRows& tokens,
                                     const at::Tensor& residual_TH, const MicroBatch& batch,
                                     PreActivation pre_activation, DenseMlpState& state) const {
  ExpertOutput output = experts_forward(tokens, {tokens.row_RH.size(0)}, as_expert(weights, batch), pre_activation);
  state.gate_up_TJ = std::move(output.gate_up_RJ);
  MemoryScope scope(MemoryCategory::activations);
  return residual_TH + output.row_RH;
}

at::Tensor DenseMlp::backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                              at::Tensor normed_TH, const MicroBatch& batch, DenseMlpState state) const {
  return backward_weighed(weights, gradients, grad_TH, all_tokens(std::move(normed_TH)), batch, std::move(state))
      .row_RH;
}

ExpertRows DenseMlp::backward_weighed(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                                      ExpertRows tokens, const MicroBatch& batch, DenseMlpState state) const {
  ExpertGradients as_experts{as_one_expert(gate_up_JH_(gradients)), as_one_expert(down_HI_(gradients))};
  as_experts.gate_up_low_rank = as_one_expert(of_gate_up_, gradients);
  as_experts.down_low_rank = as_one_expert(of_down_, gradients);
  const int64_t count = tokens.row_RH.size(0);
  return experts_backward(grad_TH, std::move(tokens), std::move(state.gate_up_TJ), {count}, as_expert(weights, batch),
                          as_experts);
}

}  // namespace conclave
