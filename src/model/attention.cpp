#include "model/attention.h"

#include "kernels/linear.h"
#include "kernels/values.h"
#include "memory/memory_category.h"
#include "model/declarations.h"

namespace conclave {

void Attention::declare(const ModelConfig& config, const AttentionConfig& attention, const std::string& name,
                        UnitDeclaration& unit) {
  const int64_t hidden = config.hidden_size;
  unit.parameters.push_back(matrix(
      config, name + ".qkv", {attention.query_width() + attention.key_width() + attention.value_width(), hidden}));
  unit.parameters.push_back(matrix(config, name + ".output", {hidden, attention.output_width()}));
}

Attention::Attention(AttentionConfig config, const std::string& name, const UnitDeclaration& unit)
    : config_(std::move(config)), qkv_MH_(unit, name + ".qkv"), output_HN_(unit, name + ".output") {}

AttentionShape Attention::shape(const MicroBatch& batch) const {
  return {batch.batch,      batch.sequence,        config_.heads, config_.key_value_heads,
          config_.head_dim, config_.sliding_window};
}

at::Tensor Attention::forward(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                              const MicroBatch& batch, const RotaryTable& rotary, AttentionState& state) const {
  const int64_t tokens = normed_TH.size(0);
  MemoryScope scope(MemoryCategory::activations);
  state.qkv_TM = at::empty({tokens, qkv_MH_(weights).size(0)}, normed_TH.options());
  linear_forward(state.qkv_TM, normed_TH, qkv_MH_(weights));
  rotary_forward_(state.qkv_TM, turned_heads(), config_.head_dim, rotary);
  state.attention_TN = at::empty({tokens, output_HN_(weights).size(1)}, normed_TH.options());
  state.logsumexp_BNS = at::empty({batch.batch, config_.heads, batch.sequence}, normed_TH.options().dtype(at::kFloat));
  attention_forward(state.attention_TN, state.logsumexp_BNS, state.qkv_TM, shape(batch));
  at::Tensor output_TH = at::empty_like(residual_TH);
  copy_values(output_TH, residual_TH);
  linear_forward_add(output_TH, state.attention_TN, output_HN_(weights));
  return output_TH;
}

void Attention::backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                         const at::Tensor& normed_TH, const MicroBatch& batch, const RotaryTable& rotary,
                         AttentionState state) const {
  at::Tensor grad_attention_TN = at::empty_like(state.attention_TN);
  linear_backward_input(grad_attention_TN, grad_TH, output_HN_(weights));
  const Gradient& output_HN = output_HN_(gradients);
  linear_backward_weight(output_HN.tensor, grad_TH, state.attention_TN, output_HN.accumulate);
  at::Tensor grad_qkv_TM = at::empty_like(state.qkv_TM);
  attention_backward(grad_qkv_TM, grad_attention_TN, state.attention_TN, state.logsumexp_BNS, state.qkv_TM,
                     shape(batch));
  grad_attention_TN.reset();
  state = {};
  rotary_backward_(grad_qkv_TM, turned_heads(), config_.head_dim, rotary);
  const Gradient& qkv_MH = qkv_MH_(gradients);
  linear_backward_weight(qkv_MH.tensor, grad_qkv_TM, normed_TH, qkv_MH.accumulate);
  linear_backward_input(normed_TH, grad_qkv_TM, qkv_MH_(weights));
}

}  // namespace conclave
