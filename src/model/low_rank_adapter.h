// An adapter beside a matrix of a dense layer, or beside some rows of it (kernels/low_rank.h).
#pragma once

#include <optional>

#include "config/model_config.h"
#include "kernels/dropout.h"
#include "kernels/low_rank.h"
#include "model/micro_batch.h"
#include "model/unit_tensors.h"

namespace conclave {

// Rows of a matrix that are one of its own in published models: query, key and value of qkv.
struct MatrixPart {
  std::string name;
  int64_t rows = 0;
};

// Where an adapter's matrices lie: of the matrix [N,M] itself, or of each of its experts.
struct AdaptedMatrix {
  std::string name;  // of the matrix, or the matrix and "." and a part of it
  int64_t outputs = 0;
  int64_t inputs = 0;
  int64_t experts = 0;  // 0: it is no expert's
};
// Declares `name`.lora_a and `name`.lora_b. Initial values are PEFT's: A uniform as PyTorch's linear layers (Kaiming, a
// = sqrt(5): bound 1 / sqrt(inputs)), B zeros.
void declare_adapter(const AdapterShape& shape, const AdaptedMatrix& matrix, UnitDeclaration& unit);
bool has_adapter(const UnitDeclaration& unit, const std::string& name);
// Whether the adapters of a unit that are to lie beside the matrix `name` (its name without the unit's) are asked for.
bool is_adapted(const ModelConfig& config, const UnitDeclaration& unit, const std::string& name);

class LowRankAdapter {
 public:
  // `first`: the first of the outputs that it adds to.
  LowRankAdapter(const std::string& name, int64_t first, const UnitDeclaration& unit);

  int64_t first() const { return first_; }
  int64_t outputs(const UnitWeights& weights) const { return b_NP_(weights).size(0); }
  LowRank matrices(const UnitWeights& weights) const;
  const Gradient& a_gradient(UnitGradients& gradients) const { return a_PM_(gradients); }
  const Gradient& b_gradient(UnitGradients& gradients) const { return b_NP_(gradients); }
  // None: nothing is dropped out of this batch.
  std::optional<Dropout> dropout_of(const MicroBatch& batch) const;

  // y [R,N], its own outputs, += what it makes of x [R,M].
  void forward_add(const UnitWeights& weights, const at::Tensor& y_RN, const at::Tensor& x_RM,
                   const MicroBatch& batch) const;
  void backward_parameters(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_y_RN,
                           const at::Tensor& x_RM, const MicroBatch& batch) const;
  void backward_input_add(const UnitWeights& weights, const at::Tensor& grad_x_RM, const at::Tensor& grad_y_RN,
                          const MicroBatch& batch) const;

 private:
  at::Tensor input(const at::Tensor& x_RM, const MicroBatch& batch) const;

  ParameterSlot a_PM_, b_NP_;
  int64_t first_;
  AdapterRule rule_;
  uint64_t stream_;  // of dropout
};

}  // namespace conclave
