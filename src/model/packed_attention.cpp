#include "model/packed_attention.h"

#include <ATen/ATen.h>

#include "kernels/attention_sink.h"
#include "model/declarations.h"

namespace conclave {

void PackedAttention::declare(const ModelConfig& config, const AttentionConfig& attention, const std::string& name,
                              UnitDeclaration& unit) {
  if (attention.sinks) {
    ParameterDeclaration sinks = matrix(config, name + ".sinks", {attention.heads});
    sinks.decay = false;
    unit.parameters.push_back(std::move(sinks));
  }
  Projection::declare(config, name + ".output", {config.hidden_size, attention.output_width()}, attention.output_bias,
                      unit);
}

PackedAttention::PackedAttention(AttentionConfig config, const std::string& name, const UnitDeclaration& unit)
    : config_(std::move(config)), output_(name + ".output", config_.output_bias, unit) {
  if (config_.sinks) sink_N_.emplace(unit, name + ".sinks");
}

AttentionShape PackedAttention::shape(const MicroBatch& batch) const {
  return {.batch = batch.batch,
          .sequence = batch.sequence,
          .heads = config_.heads,
          .kv_heads = config_.key_value_heads,
          .head_dim = config_.head_dim,
          .window = config_.sliding_window,
          .scale = config_.score_scale,
          .value_head_dim = config_.value_head_dim,
          .sinks = config_.sinks,
          .documents = batch.documents.get()};
}

at::Tensor PackedAttention::forward(const UnitWeights& weights, const at::Tensor& residual_TH, const MicroBatch& batch,
                                    AttentionState& state) const {
  const auto options = residual_TH.options();
  state.attention_TN = at::empty({residual_TH.size(0), config_.output_width()}, options);
  state.logsumexp_BNS = at::empty({batch.batch, config_.heads, batch.sequence}, options.dtype(at::kFloat));
  attention_forward(state.attention_TN, state.logsumexp_BNS, state.qkv_TM, shape(batch));
  if (sink_N_) sink_forward_(state.attention_TN, state.logsumexp_BNS, (*sink_N_)(weights));
  return project(weights, residual_TH, state.attention_TN, batch);
}

at::Tensor PackedAttention::extend(const UnitWeights& weights, const at::Tensor& residual_TH,
                                   const at::Tensor& query_TN, const MicroBatch& rows,
                                   const NewestTokens& newest) const {
  const int64_t tokens = residual_TH.size(0), keys = config_.key_width();
  const at::Tensor attention_TN = at::empty({tokens, config_.output_width()}, residual_TH.options());
  const at::Tensor logsumexp_BNS = at::empty({1, config_.heads, tokens}, residual_TH.options().dtype(at::kFloat));
  cached_attention(attention_TN, logsumexp_BNS, query_TN, newest.keys_and_values(keys, keys, config_.value_width()),
                   shape(rows));
  if (sink_N_) sink_forward_(attention_TN, logsumexp_BNS, (*sink_N_)(weights));
  return project(weights, residual_TH, attention_TN, rows);
}

at::Tensor PackedAttention::project(const UnitWeights& weights, const at::Tensor& residual_TH,
                                    const at::Tensor& attention_TN, const MicroBatch& batch) const {
  at::Tensor output_TH = at::empty_like(residual_TH);
  output_.forward_onto(weights, output_TH, residual_TH, attention_TN, batch);
  return output_TH;
}

at::Tensor PackedAttention::backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                                     const MicroBatch& batch, AttentionState& state) const {
  const at::Tensor grad_attention_TN = at::empty_like(state.attention_TN);
  output_.backward_input(weights, grad_attention_TN, grad_TH, batch);
  output_.backward_parameters(weights, gradients, grad_TH, state.attention_TN, batch);
  at::Tensor grad_qkv_TM = at::empty_like(state.qkv_TM);
  attention_backward(grad_qkv_TM, grad_attention_TN, state.attention_TN, state.logsumexp_BNS, state.qkv_TM,
                     shape(batch));
  if (sink_N_ && (*sink_N_)(gradients).is_wanted())
    sink_backward((*sink_N_)(gradients).zeroed(), grad_attention_TN, state.attention_TN, state.logsumexp_BNS,
                  (*sink_N_)(weights));
  for (at::Tensor* used : {&state.qkv_TM, &state.attention_TN, &state.logsumexp_BNS}) used->reset();
  return grad_qkv_TM;
}

}  // namespace conclave
