#include "config/model_flops.h"

#include <algorithm>

namespace conclave {

ForwardFlops forward_flops_per_token(const ModelConfig& config, int64_t sequence_length) {
  const int64_t query_width = config.num_attention_heads * config.head_dim;
  const int64_t key_value_width = config.num_key_value_heads * config.head_dim;
  const int64_t seen = std::min(sequence_length, config.sliding_window.value_or(sequence_length));

  ForwardFlops flops;
  // A product of one row [a] with a matrix [a, b] is 2ab operations.
  flops.attention_projections =
      config.num_hidden_layers * 2 * config.hidden_size * (2 * query_width + 2 * key_value_width);
  flops.attention_scores = config.num_hidden_layers * 2 * (2 * seen * query_width);
  flops.router = config.num_hidden_layers * 2 * config.hidden_size * config.num_local_experts;
  flops.experts =
      config.num_hidden_layers * config.num_experts_per_tok * 3 * (2 * config.hidden_size * config.intermediate_size);
  flops.head = 2 * config.hidden_size * config.vocab_size;
  return flops;
}

int64_t training_flops_per_token(const ModelConfig& config, int64_t sequence_length) {
  return 3 * forward_flops_per_token(config, sequence_length).total();
}

std::optional<double> model_flops_utilization(int64_t training_flops_per_token, double tokens_per_second,
                                              std::optional<double> peak_flops_per_second) {
  if (!peak_flops_per_second || *peak_flops_per_second <= 0) return std::nullopt;
  return static_cast<double>(training_flops_per_token) * tokens_per_second / *peak_flops_per_second;
}

}  // namespace conclave
