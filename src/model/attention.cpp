#include "model/attention.h"

#include <ATen/ATen.h>

#include "memory/memory_category.h"

namespace conclave {
namespace {

Projection::Parts parts_of_qkv(const AttentionConfig& attention) {
  return {{"q", attention.query_width()}, {"k", attention.key_width()}, {"v", attention.value_width()}};
}

}  // namespace

void Attention::declare(const ModelConfig& config, const AttentionConfig& attention, const std::string& name,
                        UnitDeclaration& unit) {
  const int64_t outputs = attention.query_width() + attention.key_width() + attention.value_width();
  Projection::declare(config, name + ".qkv", {outputs, config.hidden_size}, attention.qkv_bias, unit,
                      parts_of_qkv(attention));
  if (attention.qk_norm != AttentionConfig::QkNorm::none) QueryKeyNorm::declare(attention, name, unit);
  PackedAttention::declare(config, attention, name, unit);
}

Attention::Attention(const ModelConfig& model, const AttentionConfig& config, const std::string& name,
                     const UnitDeclaration& unit)
    : qkv_(name + ".qkv", config.qkv_bias, unit, parts_of_qkv(config)), packed_(config, name, unit) {
  if (config.qk_norm != AttentionConfig::QkNorm::none) norm_.emplace(model, config, name, unit);
}

// What norms read is kept beside what they give, so values alone go straight to their place.
void Attention::project(const UnitWeights& weights, const at::Tensor& normed_TH, const MicroBatch& batch,
                        AttentionState& state) const {
  const int64_t tokens = normed_TH.size(0), packed = qkv_.outputs(weights);
  state.qkv_TM = at::empty({tokens, packed}, normed_TH.options());
  if (!norm_) return qkv_.forward(weights, state.qkv_TM, normed_TH, batch);
  const int64_t turned = config().query_width() + config().key_width();
  state.norm.plain_TQ = at::empty({tokens, turned}, normed_TH.options());
  qkv_.forward_part(weights, state.norm.plain_TQ, normed_TH, 0, batch);
  qkv_.forward_part(weights, state.qkv_TM.narrow(1, turned, packed - turned), normed_TH, turned, batch);
  norm_->forward(weights, state.qkv_TM, state.norm);
}

at::Tensor Attention::forward(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                              const MicroBatch& batch, const RotaryTable& rotary, AttentionState& state) const {
  MemoryScope scope(MemoryCategory::activations);
  project(weights, normed_TH, batch, state);
  rotary_forward_(state.qkv_TM, turned_heads(), config().head_dim, rotary);
  return packed_.forward(weights, residual_TH, batch, state);
}

at::Tensor Attention::extend(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                             const MicroBatch& rows, const NewestTokens& newest, const RotaryTable& rotary) const {
  AttentionState state;
  project(weights, normed_TH, rows, state);
  rotary_forward_(state.qkv_TM, turned_heads(), config().head_dim, rotary);
  const int64_t queries = config().query_width();
  newest.append(state.qkv_TM.narrow(1, queries, state.qkv_TM.size(1) - queries));
  return packed_.extend(weights, residual_TH, state.qkv_TM.narrow(1, 0, queries), rows, newest);
}

void Attention::backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                         const at::Tensor& normed_TH, const MicroBatch& batch, const RotaryTable& rotary,
                         AttentionState state) const {
  const at::Tensor grad_qkv_TM = packed_.backward(weights, gradients, grad_TH, batch, state);
  rotary_backward_(grad_qkv_TM, turned_heads(), config().head_dim, rotary);
  if (norm_) norm_->backward_(weights, gradients, grad_qkv_TM, state.norm);
  state = {};
  qkv_.backward_parameters(weights, gradients, grad_qkv_TM, normed_TH, batch);
  qkv_.backward_input(weights, normed_TH, grad_qkv_TM, batch);
}

}  // namespace conclave
