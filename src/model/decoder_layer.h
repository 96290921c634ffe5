// A decoder layer: attention, then a mixture of experts or a dense MLP, each on a normalized input and added to the
// residual stream. Forward and backward are explicit; what lies between them is LayerState, and a recomputation policy
// is which of its fields are kept.
#pragma once

#include <optional>
#include <variant>

#include "model/attention.h"
#include "model/dense_mlp.h"
#include "model/latent_attention.h"
#include "model/mixture.h"
#include "model/norm.h"

namespace conclave {

// What a layer remembers from forward to backward. Undefined fields are computed again from `input`, to the same bits.
struct LayerState {
  at::Tensor input_TH;

  // Kept by `none` only.
  at::Tensor input_rstd_T;
  AttentionState attention;
  at::Tensor hidden_TH;     // the residual stream between attention and MLP
  DenseMlpState dense_mlp;  // of a layer that has one

  // Kept by `none` and `selective`, so that recomputation neither routes nor communicates; `full` keeps the choices.
  at::Tensor hidden_rstd_T;
  MixtureState mixture;  // of a layer that has one; the experts' pre-activation is kept by `none` only
};

class DecoderLayer {
 public:
  static void declare(const ModelConfig& config, int64_t layer, UnitDeclaration& unit);
  // `mixture`: the mixture's place among the layers' mixtures.
  DecoderLayer(const ModelConfig& config, const Mixture::Place& place, const UnitDeclaration& unit,
               ActivationCheckpointing checkpointing, const MixtureOptions& options);

  // The output [T,H]. `state` receives what backward needs, by policy; `statistics` what balancing needs of a mixture.
  at::Tensor forward(const UnitWeights& weights, at::Tensor input_TH, const MicroBatch& batch,
                     const RotaryTable& rotary, LayerState& state, RoutingStatistics& statistics) const;
  // The output alone, without jitter and dropping no token, keeping nothing.
  at::Tensor evaluate(const UnitWeights& weights, at::Tensor input_TH, const MicroBatch& batch,
                      const RotaryTable& rotary, RoutingStatistics& statistics) const;
  // The output of the newest tokens of sequences, whose caches it extends; row t of the table is of token t. `rows`:
  // the same tokens as one sequence, which is all that the MLP asks of them.
  at::Tensor extend(const UnitWeights& weights, at::Tensor input_TH, const MicroBatch& rows, const NewestTokens& newest,
                    const RotaryTable& rotary) const;
  // grad [T,H] with respect to the output becomes, in place, the gradient with respect to the input, and is returned.
  at::Tensor backward(const UnitWeights& weights, UnitGradients gradients, at::Tensor grad_TH, const MicroBatch& batch,
                      const RotaryTable& rotary, const RouterLossGradient& router_loss, LayerState state) const;

 private:
  at::Tensor run(Mode mode, const UnitWeights& weights, const MicroBatch& batch, const RotaryTable& rotary,
                 LayerState& state, RoutingStatistics& statistics) const;
  at::Tensor normed_attention_input(const UnitWeights& weights, LayerState& state) const;
  void compute_attention(const UnitWeights& weights, const MicroBatch& batch, const RotaryTable& rotary,
                         LayerState& state) const;
  // What the MLP sees: hidden normalized. The same bits every time.
  at::Tensor normed_mlp_input(const UnitWeights& weights, LayerState& state) const;

  ActivationCheckpointing checkpointing_;
  Norm input_norm_;
  std::variant<Attention, LatentAttention> attention_;
  Norm post_attention_norm_;
  std::optional<DenseMlp> dense_mlp_;  // one of
  std::optional<Mixture> mixture_;     // the two
};

}  // namespace conclave
