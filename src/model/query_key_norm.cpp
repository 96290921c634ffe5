#include "model/query_key_norm.h"

#include "kernels/rms_norm.h"
#include "model/declarations.h"

namespace conclave {
namespace {

bool is_per_head(const AttentionConfig& attention) {
  return attention.qk_norm == AttentionConfig::QkNorm::per_head;
}

}  // namespace

void QueryKeyNorm::declare(const AttentionConfig& attention, const std::string& name, UnitDeclaration& unit) {
  const bool per_head = is_per_head(attention);
  unit.parameters.push_back(norm_weight(name + ".q_norm", per_head ? attention.head_dim : attention.query_width()));
  unit.parameters.push_back(norm_weight(name + ".k_norm", per_head ? attention.head_dim : attention.key_width()));
}

QueryKeyNorm::QueryKeyNorm(const ModelConfig& config, const AttentionConfig& attention, const std::string& name,
                           const UnitDeclaration& unit)
    : query_weight_(unit, name + ".q_norm"),
      key_weight_(unit, name + ".k_norm"),
      query_width_(attention.query_width()),
      key_width_(attention.key_width()),
      query_norms_(is_per_head(attention) ? attention.heads : 1),
      key_norms_(is_per_head(attention) ? attention.key_value_heads : 1),
      eps_(config.rms_norm_eps) {}

void QueryKeyNorm::forward(const UnitWeights& weights, const at::Tensor& qkv_TM, QueryKeyNormState& state) const {
  const auto fp32 = qkv_TM.options().dtype(at::kFloat);
  state.query_rstd_TC = at::empty({qkv_TM.size(0), query_norms_}, fp32);
  state.key_rstd_TC = at::empty({qkv_TM.size(0), key_norms_}, fp32);
  rms_norm_forward(queries(qkv_TM), state.query_rstd_TC, queries(state.plain_TQ), query_weight_(weights), eps_);
  rms_norm_forward(keys(qkv_TM), state.key_rstd_TC, keys(state.plain_TQ), key_weight_(weights), eps_);
}

void QueryKeyNorm::backward_(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_qkv_TM,
                             const QueryKeyNormState& state) const {
  rms_norm_backward_(queries(grad_qkv_TM), query_weight_(gradients).zeroed(), queries(state.plain_TQ),
                     state.query_rstd_TC, query_weight_(weights));
  rms_norm_backward_(keys(grad_qkv_TM), key_weight_(gradients).zeroed(), keys(state.plain_TQ), state.key_rstd_TC,
                     key_weight_(weights));
}

}  // namespace conclave
