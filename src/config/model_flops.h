// Arithmetic a model needs per token, and how much of the machine's arithmetic rate a run uses.
//
// One multiply-add counts as two operations. Counted are the matrix products alone; normalization, rotary embedding,
// softmax, activation and the optimizer are left out, as is customary. Of the experts only the chosen ones count.
// Attention counts every query against all of the sequence (or of the sliding window), without the causal half: the
// convention of PaLM (Chowdhery et al. 2022, appendix B), in which figures are usually published; where documents do
// not see each other, the length of a token's document stands for that of the sequence. Backward is twice
// forward (a product for the input's and one for the weight's gradient; Kaplan et al. 2020, section 2.1), beside an
// adapter as much as forward (the weights have no gradient; the adapter's own products are left out), and
// recomputation does not count: it is a way of working, not work the model needs.
#pragma once

#include <cstdint>
#include <optional>

#include "config/model_config.h"

namespace conclave {

// Operations per token; forward only.
struct ForwardFlops {
  int64_t attention_projections = 0;  // query, key, value, output: all layers
  int64_t attention_scores = 0;       // query x key and probabilities x value: all layers
  int64_t router = 0;                 // all layers
  int64_t experts = 0;                // gate, up, down of the chosen and of shared experts: all layers
  int64_t dense_mlps = 0;             // gate, up, down: all layers that have one
  int64_t head = 0;

  int64_t total() const { return attention_projections + attention_scores + router + experts + dense_mlps + head; }
};

ForwardFlops forward_flops_per_token(const ModelConfig& config, int64_t sequence_length);

// Forward and backward.
int64_t training_flops_per_token(const ModelConfig& config, int64_t sequence_length);

// Model FLOPs utilization: the share of `peak_flops_per_second` (all ranks together, as measured or as the vendor
// states it) that the model's own arithmetic takes. Nothing when the peak is not known.
std::optional<double> model_flops_utilization(int64_t training_flops_per_token, double tokens_per_second,
                                              std::optional<double> peak_flops_per_second);

}  // namespace conclave
