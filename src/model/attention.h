// Causal grouped-query attention over one projection of queries, keys and values, with a rotary position embedding, and
// with norms of queries and keys and biases of the projections where the model has them.
#pragma once

#include "kernels/rotary.h"
#include "model/packed_attention.h"

namespace conclave {

class Attention {
 public:
  // Parameters are called `name`.qkv, `name`.qkv_bias, those of QueryKeyNorm and those of PackedAttention.
  static void declare(const ModelConfig& config, const AttentionConfig& attention, const std::string& name,
                      UnitDeclaration& unit);
  Attention(const ModelConfig& model, const AttentionConfig& config, const std::string& name,
            const UnitDeclaration& unit);

  // residual [T,H] + the attention of a normalized input.
  at::Tensor forward(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                     const MicroBatch& batch, const RotaryTable& rotary, AttentionState& state) const;
  // The same of the newest tokens of sequences, whose caches it extends; row t of the table is of token t.
  at::Tensor extend(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                    const MicroBatch& rows, const NewestTokens& newest, const RotaryTable& rotary) const;
  // grad [T,H] with respect to the output. normed [T,H] becomes, in place, the gradient with respect to itself.
  void backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                const at::Tensor& normed_TH, const MicroBatch& batch, const RotaryTable& rotary,
                AttentionState state) const;

 private:
  const AttentionConfig& config() const { return packed_.config(); }
  // Before queries and keys are turned.
  void project(const UnitWeights& weights, const at::Tensor& normed_TH, const MicroBatch& batch,
               AttentionState& state) const;
  int64_t turned_heads() const { return config().heads + config().key_value_heads; }

  Projection qkv_;
  std::optional<QueryKeyNorm> norm_;
  PackedAttention packed_;
};

}  // namespace conclave
