#include "metrics/flops.h"

#include <algorithm>

namespace conclave {

ForwardFlops forward_flops_per_token(const ModelShape& shape, int64_t sequence_length) {
  const int64_t query_width = shape.attention_heads * shape.head_dim;
  const int64_t key_value_width = shape.key_value_heads * shape.head_dim;
  const int64_t seen = std::min(sequence_length, shape.sliding_window.value_or(sequence_length));

  ForwardFlops flops;
  // A product of one row [a] with a matrix [a, b] is 2ab operations.
  flops.attention_projections = shape.layers * 2 * shape.hidden_size * (2 * query_width + 2 * key_value_width);
  flops.attention_scores = shape.layers * 2 * (2 * seen * query_width);
  flops.router = shape.layers * 2 * shape.hidden_size * shape.experts;
  flops.experts = shape.layers * shape.experts_per_token * 3 * (2 * shape.hidden_size * shape.intermediate_size);
  flops.head = 2 * shape.hidden_size * shape.vocabulary;
  return flops;
}

int64_t training_flops_per_token(const ModelShape& shape, int64_t sequence_length) {
  return 3 * forward_flops_per_token(shape, sequence_length).total();
}

std::optional<double> model_flops_utilization(int64_t training_flops_per_token, double tokens_per_second,
                                              std::optional<double> peak_flops_per_second) {
  if (!peak_flops_per_second || *peak_flops_per_second <= 0) return std::nullopt;
  return static_cast<double>(training_flops_per_token) * tokens_per_second / *peak_flops_per_second;
}

}  // namespace conclave
