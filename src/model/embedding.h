// The embedding: a row of its table for each token.
#pragma once

#include "config/model_config.h"
#include "model/micro_batch.h"
#include "model/unit_tensors.h"

namespace conclave {

class Embedding {
 public:
  static void declare(const ModelConfig& config, UnitDeclaration& unit);
  explicit Embedding(const UnitDeclaration& unit);

  // [V,H]: a tied head projects with it.
  const ParameterSlot& table() const { return table_VH_; }

  at::Tensor forward(const UnitWeights& weights, const MicroBatch& batch, at::ScalarType dtype) const;
  void backward(UnitGradients& gradients, const at::Tensor& grad_TH, const MicroBatch& batch) const;

 private:
  ParameterSlot table_VH_;
};

}  // namespace conclave
