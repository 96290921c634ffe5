// What all attention ends with: queries, keys and values, packed and turned, are scored and summed, with sinks if there
// are any, and projected onto the residual stream.
#pragma once

#include <optional>

#include "config/model_config.h"
#include "kernels/attention.h"
#include "model/attention_cache.h"
#include "model/latent_norm.h"
#include "model/micro_batch.h"
#include "model/projection.h"
#include "model/query_key_norm.h"

namespace conclave {

// Between forward and backward.
struct AttentionState {
  at::Tensor qkv_TM;  // normed and rotated
  at::Tensor attention_TN;
  at::Tensor logsumexp_BNS;
  QueryKeyNormState norm;         // where there is one
  NormedLatent query, key_value;  // of latent attention

  bool is_kept() const { return qkv_TM.defined(); }
};

class PackedAttention {
 public:
  // Parameters are called `name`.sinks, `name`.output, `name`.output_bias.
  static void declare(const ModelConfig& config, const AttentionConfig& attention, const std::string& name,
                      UnitDeclaration& unit);
  PackedAttention(AttentionConfig config, const std::string& name, const UnitDeclaration& unit);

  const AttentionConfig& config() const { return config_; }

  // residual [T,H] + the attention of state.qkv; writes the state's other tensors.
  at::Tensor forward(const UnitWeights& weights, const at::Tensor& residual_TH, const MicroBatch& batch,
                     AttentionState& state) const;
  // The same of the newest tokens of sequences whose caches have their keys and values already, keys in front; query
  // [T,N] is normed and rotated.
  at::Tensor extend(const UnitWeights& weights, const at::Tensor& residual_TH, const at::Tensor& query_TN,
                    const MicroBatch& rows, const NewestTokens& newest) const;
  // residual [T,H] + the projection of what attention gave.
  at::Tensor project(const UnitWeights& weights, const at::Tensor& residual_TH, const at::Tensor& attention_TN,
                     const MicroBatch& batch) const;
  // grad [T,H] with respect to the output; returns the gradient with respect to qkv and gives up the state's tensors.
  at::Tensor backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                      const MicroBatch& batch, AttentionState& state) const;

 private:
  AttentionShape shape(const MicroBatch& batch) const;

  AttentionConfig config_;
  std::optional<ParameterSlot> sink_N_;
  Projection output_;
};

}  // namespace conclave
