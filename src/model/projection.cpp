#include "model/projection.h"

#include "kernels/bias.h"
#include "kernels/linear.h"
#include "kernels/values.h"
#include "model/declarations.h"

namespace conclave {

namespace {

// f(name of an adapter beside it, first of its outputs, how many there are).
template <class F>
void for_each_part(const std::string& name, int64_t outputs, const Projection::Parts& parts, const F& f) {
  if (parts.empty()) return f(name, 0, outputs);
  int64_t first = 0;
  for (const MatrixPart& part : parts) {
    f(name + "." + part.name, first, part.rows);
    first += part.rows;
  }
}

at::Tensor outputs_of(const LowRankAdapter& adapter, const UnitWeights& weights, const at::Tensor& y_RN) {
  return y_RN.narrow(1, adapter.first(), adapter.outputs(weights));
}

}  // namespace

void Projection::declare(const ModelConfig& config, const std::string& name, std::vector<int64_t> shape, bool has_bias,
                         UnitDeclaration& unit, const Parts& parts) {
  const int64_t outputs = shape.at(0), inputs = shape.at(1);
  unit.parameters.push_back(conclave::matrix(config, name, std::move(shape)));  // not the member
  if (has_bias) unit.parameters.push_back(bias(name + "_bias", {outputs}));
  for_each_part(name, outputs, parts, [&](const std::string& part, int64_t, int64_t rows) {
    if (is_adapted(config, unit, part)) declare_adapter(*config.adapter, {part, rows, inputs}, unit);
  });
}

Projection::Projection(const std::string& name, bool has_bias, const UnitDeclaration& unit, const Parts& parts)
    : weight_NM_(unit, name) {
  if (has_bias) bias_N_.emplace(unit, name + "_bias");
  for_each_part(name, 0, parts, [&](const std::string& part, int64_t first, int64_t) {
    if (has_adapter(unit, part)) adapters_.emplace_back(part, first, unit);
  });
}

void Projection::forward(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& x_RM,
                         const MicroBatch& batch) const {
  forward_part(weights, y_RN, x_RM, 0, batch);
}

void Projection::forward_part(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& x_RM, int64_t first,
                              const MicroBatch& batch) const {
  const int64_t count = y_RN.size(1);
  linear_forward(y_RN, x_RM, weight_NM_(weights).narrow(0, first, count));
  if (bias_N_) add_bias(y_RN, (*bias_N_)(weights).narrow(0, first, count).unsqueeze(0));
  for (const LowRankAdapter& adapter : adapters_)
    if (adapter.first() >= first && adapter.first() < first + count)
      adapter.forward_add(weights, y_RN.narrow(1, adapter.first() - first, adapter.outputs(weights)), x_RM, batch);
}

void Projection::forward_onto(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& residual_RN,
                              const at::Tensor& x_RM, const MicroBatch& batch) const {
  copy_values(y_RN, residual_RN);
  linear_forward_add(y_RN, x_RM, weight_NM_(weights));
  if (bias_N_) add_bias(y_RN, (*bias_N_)(weights).unsqueeze(0));
  for (const LowRankAdapter& adapter : adapters_)
    adapter.forward_add(weights, outputs_of(adapter, weights, y_RN), x_RM, batch);
}

void Projection::backward_parameters(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_y_RN,
                                     const at::Tensor& x_RM, const MicroBatch& batch) const {
  const Gradient& weight_NM = weight_NM_(gradients);
  if (weight_NM.is_wanted()) linear_backward_weight(weight_NM.tensor, grad_y_RN, x_RM, weight_NM.accumulate);
  for (const LowRankAdapter& adapter : adapters_)
    adapter.backward_parameters(weights, gradients, outputs_of(adapter, weights, grad_y_RN), x_RM, batch);
  if (!bias_N_) return;
  const Gradient& bias_N = (*bias_N_)(gradients);
  if (bias_N.is_wanted()) bias_backward(bias_N.tensor.unsqueeze(0), grad_y_RN, bias_N.accumulate);
}

void Projection::add_adapters_input_gradient(const UnitWeights& weights, const at::Tensor& grad_x_RM,
                                             const at::Tensor& grad_y_RN, const MicroBatch& batch) const {
  for (const LowRankAdapter& adapter : adapters_)
    adapter.backward_input_add(weights, grad_x_RM, outputs_of(adapter, weights, grad_y_RN), batch);
}

void Projection::backward_input(const UnitWeights& weights, const at::Tensor& grad_x_RM, const at::Tensor& grad_y_RN,
                                const MicroBatch& batch) const {
  linear_backward_input(grad_x_RM, grad_y_RN, weight_NM_(weights));
  add_adapters_input_gradient(weights, grad_x_RM, grad_y_RN, batch);
}

void Projection::backward_input_add(const UnitWeights& weights, const at::Tensor& grad_x_RM,
                                    const at::Tensor& grad_y_RN, const MicroBatch& batch) const {
  linear_backward_input_add(grad_x_RM, grad_y_RN, weight_NM_(weights));
  add_adapters_input_gradient(weights, grad_x_RM, grad_y_RN, batch);
}

}  // namespace conclave
