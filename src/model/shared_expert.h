// An expert beside the routed ones, which every token goes through: a dense MLP, whose output may be scaled by the
// sigmoid of a logit of the token. To the router's kernels that gate is a router with one expert, always chosen.
#pragma once

#include <functional>
#include <optional>

#include "kernels/router.h"
#include "model/dense_mlp.h"

namespace conclave {

class SharedExpert {
 public:
  // The normalized input, made anew at each call, to the same bits.
  using Input = std::function<at::Tensor()>;

  // Parameters are called `layer`.shared.gate_up, `layer`.shared.down and, of a gated one, `layer`.shared.gate.
  static void declare(const ModelConfig& config, const SharedExpertConfig& shared, const std::string& layer,
                      UnitDeclaration& unit);
  SharedExpert(const SharedExpertConfig& shared, const UnitDeclaration& unit);

  // residual [T,H] + its output.
  at::Tensor forward(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                     const MicroBatch& batch, PreActivation pre_activation, DenseMlpState& state) const;
  // grad [T,H] with respect to the output; adds the gradient with respect to the normalized input to grad_normed [T,H].
  void backward_add(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH, const Input& input,
                    const MicroBatch& batch, DenseMlpState state, const at::Tensor& grad_normed_TH) const;

 private:
  Routing gate(const UnitWeights& weights, const at::Tensor& normed_TH) const;

  DenseMlp mlp_;
  std::optional<ParameterSlot> gate_1H_;
};

}  // namespace conclave
