// A linear layer, with a bias or without one, and with adapters where the job asks for them.
#pragma once

#include <optional>

#include "config/model_config.h"
#include "model/low_rank_adapter.h"
#include "model/micro_batch.h"
#include "model/unit_tensors.h"

namespace conclave {

class Projection {
 public:
  // `parts`: of a matrix that is several in published models; adapters lie beside each of them. Parameters are called
  // `name` [N,M], `name`_bias [N] and as declare_adapter() calls adapters'.
  using Parts = std::vector<MatrixPart>;
  static void declare(const ModelConfig& config, const std::string& name, std::vector<int64_t> shape, bool has_bias,
                      UnitDeclaration& unit, const Parts& parts = {});
  Projection(const std::string& name, bool has_bias, const UnitDeclaration& unit, const Parts& parts = {});

  int64_t outputs(const UnitWeights& weights) const { return weight_NM_(weights).size(0); }

  const at::Tensor& matrix(const UnitWeights& weights) const { return weight_NM_(weights); }

  // y [R,N] = x [R,M] w^T + b.
  void forward(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& x_RM,
               const MicroBatch& batch) const;
  // The same of the outputs that begin with the `first`, as many as y has columns.
  void forward_part(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& x_RM, int64_t first,
                    const MicroBatch& batch) const;
  // y = residual + x w^T + b.
  void forward_onto(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& residual_RN,
                    const at::Tensor& x_RM, const MicroBatch& batch) const;
  // The gradients of weight, bias and adapters, if they are wanted.
  void backward_parameters(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_y_RN,
                           const at::Tensor& x_RM, const MicroBatch& batch) const;
  // grad_x = grad_y w, or +=.
  void backward_input(const UnitWeights& weights, const at::Tensor& grad_x_RM, const at::Tensor& grad_y_RN,
                      const MicroBatch& batch) const;
  void backward_input_add(const UnitWeights& weights, const at::Tensor& grad_x_RM, const at::Tensor& grad_y_RN,
                          const MicroBatch& batch) const;

 private:
  void add_adapters_input_gradient(const UnitWeights& weights, const at::Tensor& grad_x_RM, const at::Tensor& grad_y_RN,
                                   const MicroBatch& batch) const;

  ParameterSlot weight_NM_;
  std::optional<ParameterSlot> bias_N_;
  std::vector<LowRankAdapter> adapters_;
};

}  // namespace conclave
