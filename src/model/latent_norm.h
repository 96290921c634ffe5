// The norm of a latent vector (latent_attention.h).
#pragma once

#include "config/model_config.h"
#include "model/unit_tensors.h"

namespace conclave {

// Between forward and backward: what was normalized, rows that may lie any distance apart.
struct NormedLatent {
  at::Tensor x_TN;
  at::Tensor rstd_T;
};

class LatentNorm {
 public:
  static void declare(const std::string& name, int64_t width, UnitDeclaration& unit);
  LatentNorm(const std::string& name, double eps, const UnitDeclaration& unit) : weight_H_(unit, name), eps_(eps) {}

  // y [T,N] from state.x_TN. The state's rstd is written.
  void forward(const UnitWeights& weights, const at::Tensor& y_TN, NormedLatent& state) const;
  // y again, to the same bits.
  void repeat(const UnitWeights& weights, const at::Tensor& y_TN, const NormedLatent& state) const;
  // grad, with respect to y, becomes that with respect to x.
  void backward_(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TN,
                 const NormedLatent& state) const;

 private:
  ParameterSlot weight_H_;
  double eps_;
};

}  // namespace conclave
