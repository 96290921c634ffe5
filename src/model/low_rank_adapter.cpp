#include "model/low_rank_adapter.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "base/random.h"
#include "kernels/values.h"

namespace conclave {
namespace {

std::string a_of(const std::string& name) {
  return name + ".lora_a";
}

std::string b_of(const std::string& name) {
  return name + ".lora_b";
}

}  // namespace

void declare_adapter(const AdapterShape& shape, const AdaptedMatrix& matrix, UnitDeclaration& unit) {
  const bool of_experts = matrix.experts > 0;
  const auto declare = [&](std::string name, int64_t rows, int64_t columns) -> ParameterDeclaration& {
    ParameterDeclaration& declared = unit.parameters.emplace_back();
    declared.name = std::move(name);
    declared.shape = {rows, columns};
    if (of_experts) declared.shape.insert(declared.shape.begin(), matrix.experts);
    declared.kind = of_experts ? ParameterKind::expert : ParameterKind::dense;
    declared.of_adapter = true;
    return declared;
  };
  declare(a_of(matrix.name), shape.rank, matrix.inputs).init_bound =
      1.0f / std::sqrt(static_cast<float>(matrix.inputs));
  declare(b_of(matrix.name), matrix.outputs, shape.rank);
}

bool has_adapter(const UnitDeclaration& unit, const std::string& name) {
  return std::any_of(unit.parameters.begin(), unit.parameters.end(),
                     [&](const ParameterDeclaration& parameter) { return parameter.name == a_of(name); });
}

bool is_adapted(const ModelConfig& config, const UnitDeclaration& unit, const std::string& name) {
  return config.adapter && config.adapter->targets.contains(name.substr(unit.name.size() + 1));
}

LowRankAdapter::LowRankAdapter(const std::string& name, int64_t first, const UnitDeclaration& unit)
    : a_PM_(unit, a_of(name)),
      b_NP_(unit, b_of(name)),
      first_(first),
      rule_(unit.adapter),
      stream_(random_stream(name + ".dropout")) {}

LowRank LowRankAdapter::matrices(const UnitWeights& weights) const {
  return {a_PM_(weights), b_NP_(weights), rule_.scale};
}

std::optional<Dropout> LowRankAdapter::dropout_of(const MicroBatch& batch) const {
  if (rule_.dropout == 0 || !batch.trains) return std::nullopt;
  return Dropout{rule_.dropout, rule_.seed, stream_, batch.sequence, &batch.sample_of_B, 0};
}

at::Tensor LowRankAdapter::input(const at::Tensor& x_RM, const MicroBatch& batch) const {
  const std::optional<Dropout> dropped = dropout_of(batch);
  if (!dropped) return x_RM;
  at::Tensor input_RM = at::empty(x_RM.sizes(), x_RM.options());
  dropout(input_RM, x_RM, *dropped);
  return input_RM;
}

void LowRankAdapter::forward_add(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& x_RM,
                                 const MicroBatch& batch) const {
  low_rank_forward_add(y_RN, input(x_RM, batch), matrices(weights));
}

void LowRankAdapter::backward_parameters(const UnitWeights& weights, UnitGradients& gradients,
                                         const at::Tensor& grad_y_RN, const at::Tensor& x_RM,
                                         const MicroBatch& batch) const {
  const LowRank factors = matrices(weights);
  low_rank_backward_weights(a_PM_(gradients), b_NP_(gradients), grad_y_RN, low_rank_backward_inner(grad_y_RN, factors),
                            input(x_RM, batch), factors);
}

void LowRankAdapter::backward_input_add(const UnitWeights& weights, const at::Tensor& grad_x_RM,
                                        const at::Tensor& grad_y_RN, const MicroBatch& batch) const {
  const LowRank factors = matrices(weights);
  const at::Tensor grad_inner_RP = low_rank_backward_inner(grad_y_RN, factors);
  const std::optional<Dropout> dropped = dropout_of(batch);
  if (!dropped) return low_rank_backward_input_add(grad_x_RM, grad_inner_RP, factors);
  const at::Tensor through_RM = at::zeros(grad_x_RM.sizes(), grad_x_RM.options());
  low_rank_backward_input_add(through_RM, grad_inner_RP, factors);
  dropout(through_RM, through_RM, *dropped);
  add_values(grad_x_RM, through_RM);
}

}  // namespace conclave
