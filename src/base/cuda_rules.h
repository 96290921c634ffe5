// What is decided on CUDA by sizes alone: by its kernels, and on paper, where their temporaries must be known. Plain
// C++, so that device code may include it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace conclave {

// FlashAttention-2 takes bf16 and head dims that are multiples of 8, up to 256. Else scores are whole.
constexpr bool has_flash_kernel(int64_t head_dim, int64_t element_bytes) {
  return element_bytes == 2 && head_dim % 8 == 0 && head_dim <= 256;
}

// Elements of a scale, and the sides of a weight's square (kernels/fp8_quantize.h).
inline constexpr int64_t fp8_block = 128;

inline constexpr int64_t most_grouped_rows = 1024;  // an expert, on average

// Whether the products of all of a rank's experts go as one (moe/grouped_experts.h): bf16, rows and columns of whole 16
// bytes, and so few rows an expert, on average, that a product alone would not fill a GPU.
constexpr bool groups_products(int64_t rows, int64_t experts, int64_t hidden, int64_t intermediate,
                               int64_t element_bytes) {
  constexpr int64_t whole = 8;
  return element_bytes == 2 && hidden % whole == 0 && intermediate % whole == 0 && rows > 0 &&
         rows <= experts * most_grouped_rows;
}

// Rows of tokens that a block of the norm's backward pass takes; each block has a sum of the weight's gradient. Follows
// from the number of tokens alone, so that the order of the sums does.
constexpr int64_t norm_rows_per_block(int64_t tokens) {
  constexpr int64_t most_blocks = 256, fewest_rows = 4;
  return std::max(fewest_rows, (tokens + most_blocks - 1) / most_blocks);
}
constexpr int64_t norm_blocks(int64_t tokens) {
  const int64_t rows = norm_rows_per_block(tokens);
  return (tokens + rows - 1) / rows;
}

}  // namespace conclave
