#include "model/norm.h"

#include "kernels/rms_norm.h"
#include "model/declarations.h"

namespace conclave {

void Norm::declare(const ModelConfig& config, const std::string& name, UnitDeclaration& unit) {
  unit.parameters.push_back(norm_weight(name, config.hidden_size));
}

void Norm::forward(const UnitWeights& weights, const at::Tensor& y_TH, const at::Tensor& rstd_T,
                   const at::Tensor& x_TH) const {
  rms_norm_forward(y_TH, rstd_T, x_TH, weight_H_(weights), eps_);
}

void Norm::repeat(const UnitWeights& weights, const at::Tensor& y_TH, const at::Tensor& rstd_T,
                  const at::Tensor& x_TH) const {
  rms_norm_repeat(y_TH, x_TH, rstd_T, weight_H_(weights));
}

void Norm::backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_x_TH,
                    const at::Tensor& grad_y_TH, const at::Tensor& rstd_T, const at::Tensor& x_TH) const {
  rms_norm_backward(grad_x_TH, weight_H_(gradients).zeroed(), grad_y_TH, x_TH, rstd_T, weight_H_(weights));
}

}  // namespace conclave
