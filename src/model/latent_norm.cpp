#include "model/latent_norm.h"

#include <ATen/ATen.h>

#include "kernels/rms_norm.h"
#include "model/declarations.h"

namespace conclave {

void LatentNorm::declare(const std::string& name, int64_t width, UnitDeclaration& unit) {
  unit.parameters.push_back(norm_weight(name, width));
}

void LatentNorm::forward(const UnitWeights& weights, const at::Tensor& y_TN, NormedLatent& state) const {
  state.rstd_T = at::empty({y_TN.size(0)}, y_TN.options().dtype(at::kFloat));
  rms_norm_forward(y_TN, state.rstd_T, state.x_TN, weight_H_(weights), eps_);
}

void LatentNorm::repeat(const UnitWeights& weights, const at::Tensor& y_TN, const NormedLatent& state) const {
  rms_norm_repeat(y_TN, state.x_TN, state.rstd_T, weight_H_(weights));
}

void LatentNorm::backward_(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TN,
                           const NormedLatent& state) const {
  rms_norm_backward_(grad_TN, weight_H_(gradients).zeroed(), state.x_TN, state.rstd_T, weight_H_(weights));
}

}  // namespace conclave
