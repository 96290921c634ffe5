// A SwiGLU that every token goes through: to the experts' passes (moe/experts.h) it is one expert, whose rows are all
// tokens, each with a weight of 1.
#pragma once

#include "config/model_config.h"
#include "model/low_rank_adapter.h"
#include "model/unit_tensors.h"
#include "moe/experts.h"

namespace conclave {

// Between forward and backward.
struct DenseMlpState {
  at::Tensor gate_up_TJ;  // the pre-activation; undefined: it is computed again
};

class DenseMlp {
 public:
  // Parameters are called `name`.gate_up, `name`.down; adapters are those of `name`.gate_up.gate, `name`.gate_up.up and
  // `name`.down.
  static void declare(const ModelConfig& config, int64_t intermediate, const std::string& name, UnitDeclaration& unit);
  DenseMlp(const std::string& name, const UnitDeclaration& unit);

  // residual [T,H] + what the MLP makes of a normalized input.
  at::Tensor forward(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                     const MicroBatch& batch, PreActivation pre_activation, DenseMlpState& state) const;
  // The same where each token's output has a weight.
  at::Tensor forward_weighed(const UnitWeights& weights, const ExpertRows& tokens, const at::Tensor& residual_TH,
                             const MicroBatch& batch, PreActivation pre_activation, DenseMlpState& state) const;
  // grad [T,H] with respect to the output; returns the gradient with respect to the normalized input, in its memory.
  at::Tensor backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                      at::Tensor normed_TH, const MicroBatch& batch, DenseMlpState state) const;
  ExpertRows backward_weighed(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                              ExpertRows tokens, const MicroBatch& batch, DenseMlpState state) const;

 private:
  ExpertWeights as_expert(const UnitWeights& weights, const MicroBatch& batch) const;

  ParameterSlot gate_up_JH_;  // J = 2 I
  ParameterSlot down_HI_;
  std::vector<LowRankAdapter> of_gate_up_, of_down_;
};

}  // namespace conclave
