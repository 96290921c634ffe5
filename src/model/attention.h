// Causal grouped-query attention over one projection of queries, keys and values, with a rotary position embedding.
#pragma once

#include "config/model_config.h"
#include "kernels/attention.h"
#include "kernels/rotary.h"
#include "model/micro_batch.h"
#include "model/unit_tensors.h"

namespace conclave {

// Between forward and backward.
struct AttentionState {
  at::Tensor qkv_TM;  // rotated
  at::Tensor attention_TN;
  at::Tensor logsumexp_BNS;

  bool is_kept() const { return qkv_TM.defined(); }
};

class Attention {
 public:
  // Parameters are called `name`.qkv, `name`.output.
  static void declare(const ModelConfig& config, const AttentionConfig& attention, const std::string& name,
                      UnitDeclaration& unit);
  Attention(AttentionConfig config, const std::string& name, const UnitDeclaration& unit);

  // residual [T,H] + the attention of a normalized input.
  at::Tensor forward(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                     const MicroBatch& batch, const RotaryTable& rotary, AttentionState& state) const;
  // grad [T,H] with respect to the output. normed [T,H] becomes, in place, the gradient with respect to itself.
  void backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                const at::Tensor& normed_TH, const MicroBatch& batch, const RotaryTable& rotary,
                AttentionState state) const;

 private:
  AttentionShape shape(const MicroBatch& batch) const;
  int64_t turned_heads() const { return config_.heads + config_.key_value_heads; }

  AttentionConfig config_;
  ParameterSlot qkv_MH_;     // M = (heads + 2 key_value_heads) * head_dim
  ParameterSlot output_HN_;  // N = heads * head_dim
};

}  // namespace conclave
