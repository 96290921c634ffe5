// Blocks of a matrix product's operands, copied as oneDNN's micro-kernels want them: rows of a with their terms in a
// row; terms of b in rows, bf16 in pairs. And what comes of the sums.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cpu.h"

namespace conclave::cpu {

// Of a block: rows of a, columns of b, terms of their sums. A block of b (fp32: 256 KiB) stays in the second-level
// cache while the rows of a pass by.
constexpr int64_t block_rows = 64, block_columns = 128, block_terms = 512;
// Of what a thread computes at a time. b is copied anew for each of them, so it has many rows; where a is copied, too,
// it has many columns.
constexpr int64_t most_rows = 1024, most_columns = 256, most_columns_of_copied = 1024;

// Element (r, c) of an operand is at r * stride + c, or at c * stride + r if it is transposed.
template <class T>
struct Operand {
  const T* data;
  int64_t stride;
  bool transposed;

  explicit Operand(const at::Tensor& matrix)
      : data(cpu::data<T>(matrix)),
        stride(matrix.stride(1) == 1 ? matrix.stride(0) : matrix.stride(1)),
        transposed(matrix.stride(1) != 1) {}
  const T* at(int64_t row, int64_t column) const {
    return data + (transposed ? column * stride + row : row * stride + column);
  }
};

// One thread's room for copies and sums. Rows have 16 elements more: a power of two apart they would share few sets of
// the first-level cache.
constexpr int64_t rounded_terms = 4 * block_terms, rounded_stride = rounded_terms + 16;
struct BlockScratch {
  alignas(64) float a[most_rows * (block_terms + 16)];
  alignas(64) float b[block_terms * most_columns];
  alignas(64) float sums[most_rows * most_columns];
  alignas(64) uint16_t rounded[block_rows * rounded_stride];
};
BlockScratch& block_scratch();

// Terms of a block in memory, where zeros follow the last one. bf16 is multiplied in pairs. Where a is copied the terms
// are rows, of which every routing gives an expert another number: each would need a micro-kernel of its own.
template <class T>
int64_t stored_terms(int64_t terms, bool copies_a) {
  const int64_t multiple = copies_a ? 8 : sizeof(T) == sizeof(float) ? 1 : 2;
  return (terms + multiple - 1) / multiple * multiple;
}

// Rows of a block of a, each with its terms in a row.
template <class T>
void copy_a(T* to, int64_t to_stride, const Operand<T>& a, int64_t row, int64_t term, int64_t rows, int64_t terms,
            int64_t in_memory);

// A block of b, rows `to_stride` elements (of bf16: pairs) apart. Of bf16 a row holds two terms of each column. fp32
// elements are rounded where the copy is bf16.
void copy_b(float* to, int64_t to_stride, const Operand<float>& b, int64_t term, int64_t column, int64_t terms,
            int64_t columns);
void copy_b(uint16_t* to, int64_t to_stride, const Operand<uint16_t>& b, int64_t term, int64_t column, int64_t terms,
            int64_t columns);
void copy_b(uint16_t* to, int64_t to_stride, const Operand<float>& b, int64_t term, int64_t column, int64_t terms,
            int64_t columns);

// Blocks of as many columns as a block has, one behind the other, of bf16. What lies in one row of memory is read in
// one go: from memory that no cache holds, twice as fast as block after block.
constexpr int64_t panel_stride = block_terms * block_columns;
template <class U>
void copy_panels_of_b(uint16_t* to, const Operand<U>& b, int64_t term, int64_t column, int64_t terms, int64_t columns);

// Rows of fp32 to rows of bf16, or added to them.
void round_rows(uint16_t* to, int64_t to_stride, const float* from, int64_t stride, int64_t rows, int64_t columns,
                bool accumulate);

// Rows of fp32 to memory that nobody reads soon, past the caches: what lies there is not read first.
void stream_rows(float* to, int64_t to_stride, const float* from, int64_t stride, int64_t rows, int64_t columns);

// sums [rows, columns] = or += a's rows, with their terms in a row, times b's block. Once `terms` are through,
// multiplied() gives back the tiles of AMX.
void multiply_block(int64_t rows, int64_t columns, int64_t terms, const float* a, int64_t a_stride, const float* b,
                    int64_t b_stride, float* sums, int64_t sums_stride, bool accumulate);
void multiply_block(int64_t rows, int64_t columns, int64_t terms, const uint16_t* a, int64_t a_stride,
                    const uint16_t* b, int64_t b_stride, float* sums, int64_t sums_stride, bool accumulate);

}  // namespace conclave::cpu
