// A linear layer, with a bias or without one.
#pragma once

#include <optional>

#include "config/model_config.h"
#include "model/unit_tensors.h"

namespace conclave {

class Projection {
 public:
  // Parameters are called `name` [N,M] and `name`_bias [N].
  static void declare(const ModelConfig& config, const std::string& name, std::vector<int64_t> shape, bool has_bias,
                      UnitDeclaration& unit);
  Projection(const std::string& name, bool has_bias, const UnitDeclaration& unit);

  int64_t outputs(const UnitWeights& weights) const { return weight_NM_(weights).size(0); }

  const at::Tensor& weight(const UnitWeights& weights) const { return weight_NM_(weights); }

  // y [R,N] = x [R,M] w^T + b.
  void forward(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& x_RM) const;
  // The same of the outputs that begin with the `first`, as many as y has columns.
  void forward_part(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& x_RM, int64_t first) const;
  // y = residual + x w^T + b.
  void forward_onto(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& residual_RN,
                    const at::Tensor& x_RM) const;
  // The gradients of weight and bias.
  void backward_parameters(UnitGradients& gradients, const at::Tensor& grad_y_RN, const at::Tensor& x_RM) const;
  // grad_x = grad_y w, or +=.
  void backward_input(const UnitWeights& weights, const at::Tensor& grad_x_RM, const at::Tensor& grad_y_RN) const;
  void backward_input_add(const UnitWeights& weights, const at::Tensor& grad_x_RM, const at::Tensor& grad_y_RN) const;

 private:
  ParameterSlot weight_NM_;
  std::optional<ParameterSlot> bias_N_;
};

}  // namespace conclave
