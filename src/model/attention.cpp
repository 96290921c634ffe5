#include "model/attention.h"

#include "kernels/bias.h"
#include "kernels/linear.h"
#include "kernels/values.h"
#include "memory/memory_category.h"
#include "model/declarations.h"

namespace conclave {
namespace {

// [1,N]: the bias of all rows, not one of several.
at::Tensor as_only_one(const at::Tensor& bias_N) {
  return bias_N.unsqueeze(0);
}

}  // namespace

void Attention::declare(const ModelConfig& config, const AttentionConfig& attention, const std::string& name,
                        UnitDeclaration& unit) {
  const int64_t hidden = config.hidden_size;
  const int64_t packed = attention.query_width() + attention.key_width() + attention.value_width();
  unit.parameters.push_back(matrix(config, name + ".qkv", {packed, hidden}));
  if (attention.qkv_bias) unit.parameters.push_back(bias(name + ".qkv_bias", {packed}));
  if (attention.qk_norm != AttentionConfig::QkNorm::none) QueryKeyNorm::declare(attention, name, unit);
  unit.parameters.push_back(matrix(config, name + ".output", {hidden, attention.output_width()}));
  if (attention.output_bias) unit.parameters.push_back(bias(name + ".output_bias", {hidden}));
}

Attention::Attention(const ModelConfig& model, AttentionConfig config, const std::string& name,
                     const UnitDeclaration& unit)
    : config_(std::move(config)), qkv_MH_(unit, name + ".qkv"), output_HN_(unit, name + ".output") {
  if (config_.qkv_bias) qkv_bias_M_.emplace(unit, name + ".qkv_bias");
  if (config_.output_bias) output_bias_H_.emplace(unit, name + ".output_bias");
  if (config_.qk_norm != AttentionConfig::QkNorm::none) norm_.emplace(model, config_, name, unit);
}

AttentionShape Attention::shape(const MicroBatch& batch) const {
  return {batch.batch,      batch.sequence,        config_.heads, config_.key_value_heads,
          config_.head_dim, config_.sliding_window};
}

void Attention::project(const UnitWeights& weights, const at::Tensor& normed_TH, AttentionState& state) const {
  const at::Tensor& weight_MH = qkv_MH_(weights);
  const int64_t tokens = normed_TH.size(0), packed = weight_MH.size(0);
  state.qkv_TM = at::empty({tokens, packed}, normed_TH.options());
  const auto product = [&](const at::Tensor& to, int64_t begin, int64_t count) {
    linear_forward(to, normed_TH, weight_MH.narrow(0, begin, count));
    if (qkv_bias_M_) add_bias(to, as_only_one((*qkv_bias_M_)(weights).narrow(0, begin, count)));
  };
  if (!norm_) return product(state.qkv_TM, 0, packed);
  const int64_t turned = config_.query_width() + config_.key_width();
  state.norm.plain_TQ = at::empty({tokens, turned}, normed_TH.options());
  product(state.norm.plain_TQ, 0, turned);
  product(state.qkv_TM.narrow(1, turned, packed - turned), turned, packed - turned);
  norm_->forward(weights, state.qkv_TM, state.norm);
}

at::Tensor Attention::forward(const UnitWeights& weights, const at::Tensor& normed_TH, const at::Tensor& residual_TH,
                              const MicroBatch& batch, const RotaryTable& rotary, AttentionState& state) const {
  const int64_t tokens = normed_TH.size(0);
  MemoryScope scope(MemoryCategory::activations);
  project(weights, normed_TH, state);
  rotary_forward_(state.qkv_TM, turned_heads(), config_.head_dim, rotary);
  state.attention_TN = at::empty({tokens, output_HN_(weights).size(1)}, normed_TH.options());
  state.logsumexp_BNS = at::empty({batch.batch, config_.heads, batch.sequence}, normed_TH.options().dtype(at::kFloat));
  attention_forward(state.attention_TN, state.logsumexp_BNS, state.qkv_TM, shape(batch));
  at::Tensor output_TH = at::empty_like(residual_TH);
  copy_values(output_TH, residual_TH);
  linear_forward_add(output_TH, state.attention_TN, output_HN_(weights));
  if (output_bias_H_) add_bias(output_TH, as_only_one((*output_bias_H_)(weights)));
  return output_TH;
}

void Attention::backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                         const at::Tensor& normed_TH, const MicroBatch& batch, const RotaryTable& rotary,
                         AttentionState state) const {
  at::Tensor grad_attention_TN = at::empty_like(state.attention_TN);
  linear_backward_input(grad_attention_TN, grad_TH, output_HN_(weights));
  const Gradient& output_HN = output_HN_(gradients);
  linear_backward_weight(output_HN.tensor, grad_TH, state.attention_TN, output_HN.accumulate);
  if (output_bias_H_) {
    const Gradient& output_bias_H = (*output_bias_H_)(gradients);
    bias_backward(as_only_one(output_bias_H.tensor), grad_TH, output_bias_H.accumulate);
  }
  at::Tensor grad_qkv_TM = at::empty_like(state.qkv_TM);
  attention_backward(grad_qkv_TM, grad_attention_TN, state.attention_TN, state.logsumexp_BNS, state.qkv_TM,
                     shape(batch));
  grad_attention_TN.reset();
  const QueryKeyNormState norm = std::move(state.norm);
  state = {};
  rotary_backward_(grad_qkv_TM, turned_heads(), config_.head_dim, rotary);
  if (norm_) norm_->backward_(weights, gradients, grad_qkv_TM, norm);
  if (qkv_bias_M_) {
    const Gradient& qkv_bias_M = (*qkv_bias_M_)(gradients);
    bias_backward(as_only_one(qkv_bias_M.tensor), grad_qkv_TM, qkv_bias_M.accumulate);
  }
  const Gradient& qkv_MH = qkv_MH_(gradients);
  linear_backward_weight(qkv_MH.tensor, grad_qkv_TM, normed_TH, qkv_MH.accumulate);
  linear_backward_input(normed_TH, grad_qkv_TM, qkv_MH_(weights));
}

}  // namespace conclave
