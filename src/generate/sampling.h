// How a token is chosen of its logits. Formulas and their order are those of Transformers' logits processors
// (generation/logits_process.py): first the repetition penalty, then temperature, top k and top p.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

namespace conclave {

struct Sampling {
  double temperature = 0;         // logits are divided by it; 0: the most likely token is taken
  int64_t top_k = 0;              // only so many of the most likely tokens can be drawn; 0: all
  double top_p = 1;               // only the most likely ones whose probabilities sum to it; 1: all
  double repetition_penalty = 1;  // logits of tokens that are there already: divided by it if positive, else multiplied

  bool draws() const { return temperature > 0; }
};

// Logits [V] fp32 on the CPU as a draw sees them; -infinity: cannot be drawn. `tokens`: of the sequence so far, the
// prompt included.
at::Tensor filtered_logits(const at::Tensor& logits_V, std::span<const int64_t> tokens, const Sampling& sampling);

// Uniform in [0, 1): a pure function of its arguments, so that a text depends neither on the layout nor on the prompts
// beside it. `position`: of the token in its sequence.
double draw_of(uint64_t seed, int64_t prompt, int64_t position);

// The most likely token of filtered logits; with sampling, the one in whose part of the probabilities, laid side by
// side by token, the draw falls.
int64_t choose_token(const at::Tensor& filtered_V, const Sampling& sampling, double draw);

}  // namespace conclave
