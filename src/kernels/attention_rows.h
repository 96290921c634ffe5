// What the CPU's attention does between its products, on a block of scores: queries of the heads that share one
// key/value head against consecutive keys. Row r is query first_query + r % queries of head r / queries. SIMD.
//
// What products read next is written in their dtype over the fp32 scores it comes from: a row of it begins where the
// row of scores does, and in bf16 fills its first half.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace conclave::cpu {

struct ScoreBlock {
  int64_t rows = 0;  // heads of the group x queries
  int64_t queries = 0;
  int64_t first_query = 0, first_key = 0;  // in the sequence
  int64_t keys = 0;                        // a row's length
  int64_t window = 0;                      // keys a query sees, itself included
  float scale = 1;                         // of the scores, positive
  bool sinks = false;                      // backward: probabilities of the keys do not sum to one
};

// score [rows, keys] becomes exp(scale score - most) in `dtype`, for keys that a row's query does not see 0. most
// [rows]
// (-infinity before the first block) grows to the largest scaled score so far; sum [rows] is multiplied by
// exp(before - now), as row r of out [rows, head_dim] is, and grows by the new terms.
void exponentials_(float* score, at::ScalarType dtype, const ScoreBlock& block, float* most, float* sum, float* out,
                   int64_t head_dim);

// out [rows, head_dim] over sum, and logsumexp [rows] = most + log(sum).
void divide_(float* out, const float* sum, const float* most, float* logsumexp, int64_t rows, int64_t head_dim);

// Of two matrices [rows, head_dim] of one dtype the products of rows.
void dot_rows(float* product, const at::Tensor& a, const at::Tensor& b);

// In `dtype`, score [rows, keys] becomes probabilities P = exp(scale score - logsumexp), the gradient of probabilities
// that of scores before they are scaled, scale P (grad - delta). logsumexp, delta [rows]; delta: of a query the product
// of its output and the output's gradient.
void probabilities_and_gradients_(float* score, float* grad, at::ScalarType dtype, const ScoreBlock& block,
                                  const float* logsumexp, const float* delta);

}  // namespace conclave::cpu
