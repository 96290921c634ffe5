// Root mean square normalization of the residual stream.
#pragma once

#include "config/model_config.h"
#include "model/unit_tensors.h"

namespace conclave {

class Norm {
 public:
  static void declare(const ModelConfig& config, const std::string& name, UnitDeclaration& unit);
  Norm(const ModelConfig& config, const std::string& name, const UnitDeclaration& unit)
      : weight_H_(unit, name), eps_(config.rms_norm_eps) {}

  // y [T,H] from x. rstd [T] fp32 is written.
  void forward(const UnitWeights& weights, const at::Tensor& y_TH, const at::Tensor& rstd_T,
               const at::Tensor& x_TH) const;
  // y again from a kept rstd, to the same bits.
  void repeat(const UnitWeights& weights, const at::Tensor& y_TH, const at::Tensor& rstd_T,
              const at::Tensor& x_TH) const;
  // grad_x += what arrives through y.
  void backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_x_TH,
                const at::Tensor& grad_y_TH, const at::Tensor& rstd_T, const at::Tensor& x_TH) const;

 private:
  ParameterSlot weight_H_;
  double eps_;
};

}  // namespace conclave
