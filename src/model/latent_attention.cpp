#include "model/latent_attention.h"

#include <ATen/ATen.h>

#include <cmath>

#include "kernels/linear.h"
#include "kernels/values.h"
#include "memory/memory_category.h"

namespace conclave {
namespace {

LatentHeads heads_of(const AttentionConfig& attention) {
  return {.count = attention.heads,
          .plain_dim = attention.latent->qk_nope_head_dim,
          .rotary_dim = attention.latent->qk_rope_head_dim,
          .value_dim = attention.value_head_dim};
}

bool has_query_latent(const AttentionConfig& attention) {
  return attention.latent->q_lora_rank > 0;
}

}  // namespace

void LatentAttention::declare(const ModelConfig& config, const AttentionConfig& attention, const std::string& name,
                              UnitDeclaration& unit) {
  const LatentAttentionConfig& latent = *attention.latent;
  const LatentHeads heads = heads_of(attention);
  const int64_t hidden = config.hidden_size, queries = attention.query_width();
  if (has_query_latent(attention)) {
    Projection::declare(config, name + ".q_a", {latent.q_lora_rank, hidden}, attention.qkv_bias, unit);
    LatentNorm::declare(name + ".q_a_norm", latent.q_lora_rank, unit);
    Projection::declare(config, name + ".q_b", {queries, latent.q_lora_rank}, /*has_bias=*/false, unit);
  } else {
    Projection::declare(config, name + ".q", {queries, hidden}, /*has_bias=*/false, unit);
  }
  Projection::declare(config, name + ".kv_a", {latent.kv_lora_rank + heads.rotary_dim, hidden}, attention.qkv_bias,
                      unit);
  LatentNorm::declare(name + ".kv_a_norm", latent.kv_lora_rank, unit);
  Projection::declare(config, name + ".kv_b", {heads.latent_columns(), latent.kv_lora_rank}, /*has_bias=*/false, unit);
  PackedAttention::declare(config, attention, name, unit);
}

LatentAttention::LatentAttention(const AttentionConfig& attention, const std::string& name, const UnitDeclaration& unit)
    : heads_(heads_of(attention)),
      rank_(attention.latent->kv_lora_rank),
      query_(name + (has_query_latent(attention) ? ".q_b" : ".q"), /*has_bias=*/false, unit),
      kv_a_(name + ".kv_a", attention.qkv_bias, unit),
      kv_norm_(name + ".kv_a_norm", attention.latent->norm_eps, unit),
      kv_b_(name + ".kv_b", /*has_bias=*/false, unit),
      packed_(attention, name, unit) {
  if (!has_query_latent(attention)) return;
  q_a_.emplace(name + ".q_a", attention.qkv_bias, unit);
  q_norm_.emplace(name + ".q_a_norm", attention.latent->norm_eps, unit);
}

at::Tensor LatentAttention::queries_of(const at::Tensor& qkv_TM) const {
  return qkv_TM.narrow(1, 0, heads_.count * heads_.key_dim());
}

// Of each head the last dims.
void LatentAttention::turn_queries_(const at::Tensor& qkv_TM, const RotaryTable& rotary, bool back) const {
  const at::Tensor turned = qkv_TM.narrow(1, heads_.plain_dim, heads_.count * heads_.key_dim() - heads_.plain_dim);
  (back ? rotary_backward_ : rotary_forward_)(turned, heads_.count, heads_.key_dim(), rotary);
}

void LatentAttention::project_queries(const UnitWeights& weights, const at::Tensor& normed_TH, const MicroBatch& batch,
                                      AttentionState& state) const {
  if (!q_a_) return query_.forward(weights, queries_of(state.qkv_TM), normed_TH, batch);
  state.query.x_TN = at::empty({normed_TH.size(0), q_a_->outputs(weights)}, normed_TH.options());
  q_a_->forward(weights, state.query.x_TN, normed_TH, batch);
  const at::Tensor latent_TN = at::empty_like(state.query.x_TN);
  q_norm_->forward(weights, latent_TN, state.query);
  query_.forward(weights, queries_of(state.qkv_TM), latent_TN, batch);
}

void LatentAttention::project_keys_and_values(const UnitWeights& weights, const at::Tensor& normed_TH,
                                              const MicroBatch& batch, const RotaryTable& rotary,
                                              AttentionState& state) const {
  const Latent latent = project_latent(weights, normed_TH, batch, rotary, state.key_value);
  const at::Tensor kv_TX = at::empty({normed_TH.size(0), heads_.latent_columns()}, normed_TH.options());
  kv_b_.forward(weights, kv_TX, latent.normed_TN, batch);
  expand_latent(state.qkv_TM, kv_TX, turned_of(latent.kv_a_TX), heads_);
}

LatentAttention::Latent LatentAttention::project_latent(const UnitWeights& weights, const at::Tensor& normed_TH,
                                                        const MicroBatch& batch, const RotaryTable& rotary,
                                                        NormedLatent& state) const {
  const int64_t tokens = normed_TH.size(0);
  const at::Tensor kv_a_TX = at::empty({tokens, kv_a_.outputs(weights)}, normed_TH.options());
  kv_a_.forward(weights, kv_a_TX, normed_TH, batch);
  rotary_forward_(turned_of(kv_a_TX), 1, heads_.rotary_dim, rotary);
  state.x_TN = latent_of(kv_a_TX);
  const at::Tensor latent_TN = at::empty({tokens, rank_}, normed_TH.options());
  kv_norm_.forward(weights, latent_TN, state);
  return {latent_TN, kv_a_TX};
}

at::Tensor LatentAttention::forward(const UnitWeights& weights, const at::Tensor& normed_TH,
                                    const at::Tensor& residual_TH, const MicroBatch& batch, const RotaryTable& rotary,
                                    AttentionState& state) const {
  MemoryScope scope(MemoryCategory::activations);
  state.qkv_TM = at::empty({normed_TH.size(0), heads_.packed_columns()}, normed_TH.options());
  project_queries(weights, normed_TH, batch, state);
  turn_queries_(state.qkv_TM, rotary, /*back=*/false);
  project_keys_and_values(weights, normed_TH, batch, rotary, state);
  return packed_.forward(weights, residual_TH, batch, state);
}

at::Tensor LatentAttention::extend(const UnitWeights& weights, const at::Tensor& normed_TH,
                                   const at::Tensor& residual_TH, const MicroBatch& rows, const NewestTokens& newest,
                                   const RotaryTable& rotary) const {
  const int64_t tokens = normed_TH.size(0), key_dim = rank_ + heads_.rotary_dim, count = heads_.count;
  AttentionState state;
  state.qkv_TM = at::empty({tokens, count * heads_.key_dim()}, normed_TH.options());  // queries alone
  project_queries(weights, normed_TH, rows, state);
  turn_queries_(state.qkv_TM, rotary, /*back=*/false);
  const Latent latent = project_latent(weights, normed_TH, rows, rotary, state.key_value);
  newest.append(at::cat({latent.normed_TN, turned_of(latent.kv_a_TX)}, 1));
  const AttentionShape shape{
      .batch = 1,
      .sequence = tokens,
      .heads = count,
      .kv_heads = 1,
      .head_dim = key_dim,
      .window = packed_.config().sliding_window,
      .scale = packed_.config().score_scale.value_or(1 / std::sqrt(static_cast<double>(heads_.key_dim()))),
      .value_head_dim = rank_};
  const at::Tensor latent_TN = at::empty({tokens, count * rank_}, normed_TH.options());
  const at::Tensor logsumexp_BNS = at::empty({1, count, tokens}, normed_TH.options().dtype(at::kFloat));
  cached_attention(latent_TN, logsumexp_BNS, absorbed_queries(weights, state.qkv_TM),
                   newest.keys_and_values(key_dim, 0, rank_), shape);
  return packed_.project(weights, residual_TH, expanded_values(weights, latent_TN), rows);
}

// kv_b has of each head the rows that make its key, then those that make its value.
at::Tensor LatentAttention::absorbed_queries(const UnitWeights& weights, const at::Tensor& query_TN) const {
  const int64_t key_dim = rank_ + heads_.rotary_dim, of_head = heads_.plain_dim + heads_.value_dim;
  const at::Tensor absorbed_TN = at::empty({query_TN.size(0), heads_.count * key_dim}, query_TN.options());
  for (int64_t head = 0; head < heads_.count; ++head) {
    const at::Tensor from = query_TN.narrow(1, head * heads_.key_dim(), heads_.key_dim());
    const at::Tensor to = absorbed_TN.narrow(1, head * key_dim, key_dim);
    linear_backward_input(to.narrow(1, 0, rank_), from.narrow(1, 0, heads_.plain_dim),
                          kv_b_.matrix(weights).narrow(0, head * of_head, heads_.plain_dim));
    copy_values(to.narrow(1, rank_, heads_.rotary_dim), from.narrow(1, heads_.plain_dim, heads_.rotary_dim));
  }
  return absorbed_TN;
}

at::Tensor LatentAttention::expanded_values(const UnitWeights& weights, const at::Tensor& latent_TN) const {
  const int64_t value_dim = heads_.value_dim, of_head = heads_.plain_dim + value_dim;
  const at::Tensor value_TN = at::empty({latent_TN.size(0), heads_.count * value_dim}, latent_TN.options());
  for (int64_t head = 0; head < heads_.count; ++head)
    linear_forward(value_TN.narrow(1, head * value_dim, value_dim), latent_TN.narrow(1, head * rank_, rank_),
                   kv_b_.matrix(weights).narrow(0, head * of_head + heads_.plain_dim, value_dim));
  return value_TN;
}

at::Tensor LatentAttention::backward_queries(const UnitWeights& weights, UnitGradients& gradients,
                                             const at::Tensor& grad_query_TN, const MicroBatch& batch,
                                             const AttentionState& state) const {
  at::Tensor latent_TN = at::empty_like(state.query.x_TN);
  q_norm_->repeat(weights, latent_TN, state.query);
  query_.backward_parameters(weights, gradients, grad_query_TN, latent_TN, batch);
  const at::Tensor& grad_latent_TN = latent_TN;  // its memory, now that the value is used up
  query_.backward_input(weights, grad_latent_TN, grad_query_TN, batch);
  q_norm_->backward_(weights, gradients, grad_latent_TN, state.query);
  return latent_TN;
}

at::Tensor LatentAttention::backward_keys_and_values(const UnitWeights& weights, UnitGradients& gradients,
                                                     const at::Tensor& grad_qkv_TM, const MicroBatch& batch,
                                                     const RotaryTable& rotary, const AttentionState& state) const {
  const int64_t tokens = grad_qkv_TM.size(0);
  const at::Tensor grad_kv_TX = at::empty({tokens, heads_.latent_columns()}, grad_qkv_TM.options());
  at::Tensor grad_kv_a_TX = at::empty({tokens, rank_ + heads_.rotary_dim}, grad_qkv_TM.options());
  collect_latent(grad_kv_TX, turned_of(grad_kv_a_TX), grad_qkv_TM, heads_);
  rotary_backward_(turned_of(grad_kv_a_TX), 1, heads_.rotary_dim, rotary);
  const at::Tensor latent_TN = at::empty({tokens, rank_}, grad_qkv_TM.options());
  kv_norm_.repeat(weights, latent_TN, state.key_value);
  kv_b_.backward_parameters(weights, gradients, grad_kv_TX, latent_TN, batch);
  kv_b_.backward_input(weights, latent_of(grad_kv_a_TX), grad_kv_TX, batch);
  kv_norm_.backward_(weights, gradients, latent_of(grad_kv_a_TX), state.key_value);
  return grad_kv_a_TX;
}

void LatentAttention::backward(const UnitWeights& weights, UnitGradients& gradients, const at::Tensor& grad_TH,
                               const at::Tensor& normed_TH, const MicroBatch& batch, const RotaryTable& rotary,
                               AttentionState state) const {
  const at::Tensor grad_qkv_TM = packed_.backward(weights, gradients, grad_TH, batch, state);
  turn_queries_(grad_qkv_TM, rotary, /*back=*/true);
  const at::Tensor grad_kv_a_TX = backward_keys_and_values(weights, gradients, grad_qkv_TM, batch, rotary, state);
  kv_a_.backward_parameters(weights, gradients, grad_kv_a_TX, normed_TH, batch);
  const Projection& first = q_a_ ? *q_a_ : query_;  // reads the input
  const at::Tensor grad_query_TN =
      q_a_ ? backward_queries(weights, gradients, queries_of(grad_qkv_TM), batch, state) : queries_of(grad_qkv_TM);
  first.backward_parameters(weights, gradients, grad_query_TN, normed_TH, batch);
  state = {};
  first.backward_input(weights, normed_TH, grad_query_TN, batch);
  kv_a_.backward_input_add(weights, normed_TH, grad_kv_a_TX, batch);
}

}  // namespace conclave
