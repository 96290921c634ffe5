// Root mean square normalization of queries and keys, before they are turned: of each head, or of the whole projection.
#pragma once

#include "config/model_config.h"
#include "model/unit_tensors.h"

namespace conclave {

// Between forward and backward.
struct QueryKeyNormState {
  at::Tensor plain_TQ;  // queries and keys before the norm, side by side
  at::Tensor query_rstd_TC, key_rstd_TC;
};

class QueryKeyNorm {
 public:
  // Parameters are called `name`.q_norm, `name`.k_norm.
  static void declare(const AttentionConfig& attention, const std::string& name, UnitDeclaration& unit);
  QueryKeyNorm(const ModelConfig& config, const AttentionConfig& attention, const std::string& name,
               const UnitDeclaration& unit);

  // Queries and keys, the first columns of qkv [T,M], are written from state.plain.
  void forward(const UnitWeights& weights, const at::Tensor& qkv_TM, QueryKeyNormState& state) const;
  // Their gradient, the first columns of grad_qkv, becomes that of state.plain.
  void backward_(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_qkv_TM,
                 const QueryKeyNormState& state) const;

 private:
  at::Tensor queries(const at::Tensor& qkv_TM) const { return qkv_TM.narrow(1, 0, query_width_); }
  at::Tensor keys(const at::Tensor& qkv_TM) const { return qkv_TM.narrow(1, query_width_, key_width_); }

  ParameterSlot query_weight_, key_weight_;
  int64_t query_width_, key_width_;
  int64_t query_norms_, key_norms_;  // of a token
  double eps_;
};

}  // namespace conclave
