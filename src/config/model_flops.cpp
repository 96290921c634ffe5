#include "config/model_flops.h"

#include <algorithm>

namespace conclave {
namespace {

// A product of one row [a] with a matrix [a, b] is 2ab operations.
int64_t product_flops(int64_t a, int64_t b) {
  return 2 * a * b;
}

int64_t swiglu_flops(int64_t hidden, int64_t intermediate) {
  return 3 * product_flops(hidden, intermediate);
}

void add_attention(const AttentionConfig& attention, int64_t hidden, int64_t sequence_length, ForwardFlops& flops) {
  const int64_t seen = std::min(sequence_length, attention.sliding_window.value_or(sequence_length));
  flops.attention_scores +=
      product_flops(seen, attention.query_width()) + product_flops(seen, attention.output_width());
  flops.attention_projections += product_flops(attention.output_width(), hidden);
  if (!attention.latent) {
    flops.attention_projections +=
        product_flops(hidden, attention.query_width() + attention.key_width() + attention.value_width());
    return;
  }
  const LatentAttentionConfig& latent = *attention.latent;
  const int64_t query_input = latent.q_lora_rank > 0 ? latent.q_lora_rank : hidden;
  if (latent.q_lora_rank > 0) flops.attention_projections += product_flops(hidden, latent.q_lora_rank);
  flops.attention_projections +=
      product_flops(query_input, attention.query_width()) +
      product_flops(hidden, latent.kv_lora_rank + latent.qk_rope_head_dim) +
      product_flops(latent.kv_lora_rank, attention.heads * (latent.qk_nope_head_dim + attention.value_head_dim));
}

void add_mixture(const MixtureConfig& mixture, int64_t hidden, ForwardFlops& flops) {
  flops.router += product_flops(hidden, mixture.experts);
  flops.experts += mixture.top_k * swiglu_flops(hidden, mixture.intermediate);
  if (!mixture.shared) return;
  flops.experts += swiglu_flops(hidden, mixture.shared->intermediate);
  if (mixture.shared->gated) flops.experts += product_flops(hidden, 1);
}

}  // namespace

ForwardFlops forward_flops_per_token(const ModelConfig& config, int64_t sequence_length) {
  const int64_t hidden = config.hidden_size;
  ForwardFlops flops;
  for (const LayerConfig& layer : config.layers) {
    add_attention(layer.attention, hidden, sequence_length, flops);
    if (const MixtureConfig* mixture = layer.mixture())
      add_mixture(*mixture, hidden, flops);
    else
      flops.dense_mlps += swiglu_flops(hidden, std::get<DenseMlpConfig>(layer.mlp).intermediate);
  }
  flops.head = product_flops(hidden, config.vocab_size);
  return flops;
}

int64_t training_flops_per_token(const ModelConfig& config, int64_t sequence_length) {
  return (config.adapter ? 2 : 3) * forward_flops_per_token(config, sequence_length).total();
}

std::optional<double> model_flops_utilization(int64_t training_flops_per_token, double tokens_per_second,
                                              std::optional<double> peak_flops_per_second) {
  if (!peak_flops_per_second || *peak_flops_per_second <= 0) return std::nullopt;
  return static_cast<double>(training_flops_per_token) * tokens_per_second / *peak_flops_per_second;
}

}  // namespace conclave
