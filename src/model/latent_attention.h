// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): keys and values of all heads come from one
// short latent vector, queries from another one or from the input. In training the latents are expanded, and attention
// is that of heads which each have a key and a value of their own. In generation the latents are what is cached (of
// DeepSeek-V3 576 numbers for a token instead of 40,960), and never expanded: the queries are taken to the latent's
// space, where all heads read the same keys and values (ibid., section 2.1.2).
#pragma once

#include "kernels/latent_heads.h"
#include "kernels/rotary.h"
#include "model/packed_attention.h"

namespace conclave {

class LatentAttention {
 public:
  // Parameters are called `name`.q, or with a latent of queries `name`.q_a, `name`.q_a_bias, `name`.q_a_norm,
  // `name`.q_b; `name`.kv_a, `name`.kv_a_bias, `name`.kv_a_norm, `name`.kv_b; and those of PackedAttention.
  static void declare(const ModelConfig& config, const AttentionConfig& attention, const std::string& name,
                      UnitDeclaration& unit);
  LatentAttention(const AttentionConfig& attention, const std::string& name, const UnitDeclaration& unit);

  // As Attention's.
  at::Tensor forward(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                     const MicroBatch& batch, const RotaryTable& rotary, AttentionState& state) const;
  at::Tensor extend(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                    const MicroBatch& rows, const NewestTokens& newest, const RotaryTable& rotary) const;
  void backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                const at::Tensor& normed_TH, const MicroBatch& batch, const RotaryTable& rotary,
                AttentionState state) const;

 private:
  void project_queries(const UnitWeights& weights, const at::Tensor& normed_TH, const MicroBatch& batch,
                       AttentionState& state) const;
  // Of state.key_value.x the latent stays, behind which the turned dims of the keys lie.
  void project_keys_and_values(const UnitWeights& weights, const at::Tensor& normed_TH, const MicroBatch& batch,
                               const RotaryTable& rotary, AttentionState& state) const;
  // The latent [T,N], normed, and beside it what kv_a gave; its turned dims are turned.
  struct Latent {
    at::Tensor normed_TN, kv_a_TX;
  };
  Latent project_latent(const UnitWeights& weights, const at::Tensor& normed_TH, const MicroBatch& batch,
                        const RotaryTable& rotary, NormedLatent& state) const;
  // Queries of all heads as the latent sees them, [T, heads * (rank + turned dims)], and back from sums of latents, [T,
  // heads * rank], to the heads' values.
  at::Tensor absorbed_queries(const UnitWeights& weights, const at::Tensor& query_TN) const;
  at::Tensor expanded_values(const UnitWeights& weights, const at::Tensor& latent_TN) const;
  // The gradient with respect to the queries' latent, which takes the memory of a new tensor.
  at::Tensor backward_queries(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_query_TN,
                              const MicroBatch& batch, const AttentionState& state) const;
  // The gradient with respect to what kv_a gives.
  at::Tensor backward_keys_and_values(const UnitWeights& weights, UnitGradients& gradients,
                                      const at::Tensor& grad_qkv_TM, const MicroBatch& batch, const RotaryTable& rotary,
                                      const AttentionState& state) const;
  // Views of the queries, of their dims that turn and of what lies between; of the columns of kv_a.
  at::Tensor queries_of(const at::Tensor& qkv_TM) const;
  void turn_queries_(const at::Tensor& qkv_TM, const RotaryTable& rotary, bool back) const;
  at::Tensor latent_of(const at::Tensor& kv_a_TX) const { return kv_a_TX.narrow(1, 0, rank_); }
  at::Tensor turned_of(const at::Tensor& kv_a_TX) const { return kv_a_TX.narrow(1, rank_, heads_.rotary_dim); }

  LatentHeads heads_;
  int64_t rank_;                   // of keys and values
  Projection query_;               // `name`.q or `name`.q_b
  std::optional<Projection> q_a_;  // with a latent of queries
  std::optional<LatentNorm> q_norm_;
  Projection kv_a_;
  LatentNorm kv_norm_;
  Projection kv_b_;
  PackedAttention packed_;
};

}  // namespace conclave
