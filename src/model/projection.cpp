#include "model/projection.h"

#include "kernels/bias.h"
#include "kernels/linear.h"
#include "kernels/values.h"
#include "model/declarations.h"

namespace conclave {

void Projection::declare(const ModelConfig& config, const std::string& name, std::vector<int64_t> shape, bool has_bias,
                         UnitDeclaration& unit) {
  const int64_t outputs = shape.at(0);
  unit.parameters.push_back(matrix(config, name, std::move(shape)));
  if (has_bias) unit.parameters.push_back(bias(name + "_bias", {outputs}));
}

Projection::Projection(const std::string& name, bool has_bias, const UnitDeclaration& unit) : weight_NM_(unit, name) {
  if (has_bias) bias_N_.emplace(unit, name + "_bias");
}

void Projection::forward(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& x_RM) const {
  forward_part(weights, y_RN, x_RM, 0);
}

void Projection::forward_part(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& x_RM,
                              int64_t first) const {
  const int64_t count = y_RN.size(1);
  linear_forward(y_RN, x_RM, weight_NM_(weights).narrow(0, first, count));
  if (bias_N_) add_bias(y_RN, (*bias_N_)(weights).narrow(0, first, count).unsqueeze(0));
}

void Projection::forward_onto(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& residual_RN,
                              const at::Tensor& x_RM) const {
  copy_values(y_RN, residual_RN);
  linear_forward_add(y_RN, x_RM, weight_NM_(weights));
  if (bias_N_) add_bias(y_RN, (*bias_N_)(weights).unsqueeze(0));
}

void Projection::backward_parameters(UnitGradients& gradients, const at::Tensor& grad_y_RN,
                                     const at::Tensor& x_RM) const {
  const Gradient& weight_NM = weight_NM_(gradients);
  if (weight_NM.is_wanted()) linear_backward_weight(weight_NM.tensor, grad_y_RN, x_RM, weight_NM.accumulate);
  if (!bias_N_) return;
  const Gradient& bias_N = (*bias_N_)(gradients);
  if (bias_N.is_wanted()) bias_backward(bias_N.tensor.unsqueeze(0), grad_y_RN, bias_N.accumulate);
}

void Projection::backward_input(const UnitWeights& weights, const at::Tensor& grad_x_RM,
                                const at::Tensor& grad_y_RN) const {
  linear_backward_input(grad_x_RM, grad_y_RN, weight_NM_(weights));
}

void Projection::backward_input_add(const UnitWeights& weights, const at::Tensor& grad_x_RM,
                                    const at::Tensor& grad_y_RN) const {
  linear_backward_input_add(grad_x_RM, grad_y_RN, weight_NM_(weights));
}

}  // namespace conclave
