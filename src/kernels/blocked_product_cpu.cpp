#include "kernels/blocked_product.h"

#include <ATen/ATen.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/record_function.h>
#include <fbgemm/Utils.h>

#include <algorithm>
#include <memory>

#include "base/error.h"
#include "kernels/cpu.h"
#include "kernels/cpu_features.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/blocked_product_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

// The bits of bf16 elements, as lanes of 32 bits; fp32 ones are rounded.
template <class D>
HWY_INLINE hn::Vec<hn::Rebind<uint32_t, D>> bf16_lanes(D, const uint16_t* from) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<uint32_t, D> d32;
  return hn::PromoteTo(d32, hn::LoadU(d16, from));
}
template <class D>
HWY_INLINE hn::Vec<hn::Rebind<uint32_t, D>> bf16_lanes(D d, const float* from) {
  return bf16_bits(d, hn::LoadU(d, from));
}

// Pairs of elements of two rows each; an odd last row is paired with zeros.
template <class T>
HWY_INLINE void interleave_rows_of(uint32_t* out, int64_t out_stride, const T* from, int64_t stride, int64_t rows,
                                   int64_t columns) {
  for (int64_t r = 0; r < rows; r += 2) {
    uint32_t* pairs = out + r / 2 * out_stride;
    const T* even = from + r * stride;
    const T* odd = even + stride;
    const bool is_alone = r + 1 == rows;
    for_lanes(columns, [=](auto d, size_t i) HWY_ATTR {
      const hn::Rebind<uint32_t, decltype(d)> d32;
      auto pair = bf16_lanes(d, even + i);
      if (!is_alone) pair = hn::Or(pair, hn::ShiftLeft<16>(bf16_lanes(d, odd + i)));
      hn::StoreU(pair, d32, pairs + i);
    });
  }
}

void interleave_rows(uint32_t* out, int64_t out_stride, const uint16_t* from, int64_t stride, int64_t rows,
                     int64_t columns) {
  interleave_rows_of(out, out_stride, from, stride, rows, columns);
}
void interleave_rounded_rows(uint32_t* out, int64_t out_stride, const float* from, int64_t stride, int64_t rows,
                             int64_t columns) {
  interleave_rows_of(out, out_stride, from, stride, rows, columns);
}

void round_rows(uint16_t* out, int64_t out_stride, const float* sums, int64_t stride, int64_t rows, int64_t columns,
                bool accumulate) {
  for (int64_t r = 0; r < rows; ++r) {
    uint16_t* to = out + r * out_stride;
    const float* sum = sums + r * stride;
    if (accumulate)
      for_lanes(columns,
                [=](auto d, size_t i) HWY_ATTR { store(hn::Add(load(d, to + i), load(d, sum + i)), d, to + i); });
    else
      for_lanes(columns, [=](auto d, size_t i) HWY_ATTR { store(load(d, sum + i), d, to + i); });
  }
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(interleave_rows);
HWY_EXPORT(interleave_rounded_rows);
HWY_EXPORT(round_rows);

namespace {

// Of a block: rows of a, columns of b, terms of their sums. A block of b (fp32: 256 KiB) stays in the second-level
// cache while the rows of a pass by.
constexpr int64_t height = 64, width = 128, depth = 512;
// Columns of a transposed fp32 block of b that are rounded to bf16 before they are transposed: they stay in the
// first-level cache.
constexpr int64_t rounded_columns = 16;
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

// One thread's room for copies.
struct Scratch {
  // 16 elements more a row: rows a power of two apart would share few sets of the first-level cache.
  alignas(64) float a[most_rows * (depth + 16)];
  alignas(64) float b[depth * width];
  alignas(64) float sums[most_rows * most_columns];
  alignas(64) uint16_t rounded[rounded_columns * depth];
};
Scratch& scratch() {
  thread_local const auto own = std::make_unique<Scratch>();
  return *own;
}

// Terms of a block in memory, where zeros follow the last one. bf16 is multiplied in pairs. Where a is copied the terms
// are rows, of which every routing gives an expert another number: each would need a micro-kernel of its own.
template <class T>
int64_t stored(int64_t terms, bool copies_a) {
  const int64_t multiple = copies_a ? 32 : sizeof(T) == sizeof(float) ? 1 : 2;
  return (terms + multiple - 1) / multiple * multiple;
}

// Rows of a block of a, each with its terms in a row.
template <class T>
void copy_a(T* to, int64_t to_stride, const Operand<T>& a, int64_t row, int64_t term, int64_t rows, int64_t terms,
            int64_t in_memory) {
  if (a.transposed)
    fbgemm::transpose_simd<T>(terms, rows, a.at(row, term), a.stride, to, to_stride);
  else
    for (int64_t r = 0; r < rows; ++r) std::copy_n(a.at(row + r, term), terms, to + r * to_stride);
  for (int64_t r = 0; r < rows; ++r) std::fill_n(to + r * to_stride + terms, in_memory - terms, T{0});
}

void copy_b(float* to, const Operand<float>& b, int64_t term, int64_t column, int64_t terms, int64_t columns) {
  if (b.transposed)
    fbgemm::transpose_simd<float>(columns, terms, b.at(term, column), b.stride, to, width);
  else
    for (int64_t k = 0; k < terms; ++k) std::copy_n(b.at(term + k, column), columns, to + k * width);
}

// Terms in pairs: a row holds two terms of each column.
void copy_b(uint16_t* to, const Operand<uint16_t>& b, int64_t term, int64_t column, int64_t terms, int64_t columns) {
  const uint16_t* from = b.at(term, column);
  if (b.transposed && terms % 2 == 0 && b.stride % 2 == 0 && reinterpret_cast<uintptr_t>(from) % sizeof(float) == 0) {
    fbgemm::transpose_simd<float>(columns, terms / 2, reinterpret_cast<const float*>(from), b.stride / 2,
                                  reinterpret_cast<float*>(to), width);
  } else if (b.transposed) {
    for (int64_t k = 0; k < (terms + 1) / 2 * 2; ++k)
      for (int64_t c = 0; c < columns; ++c)
        to[(k / 2 * width + c) * 2 + k % 2] = k < terms ? from[c * b.stride + k] : uint16_t{0};
  } else {
    HWY_DYNAMIC_DISPATCH(interleave_rows)
    (reinterpret_cast<uint32_t*>(to), width, from, b.stride, terms, columns);
  }
}

// The same of fp32 elements, which are rounded on the way.
void copy_b(uint16_t* to, const Operand<float>& b, int64_t term, int64_t column, int64_t terms, int64_t columns) {
  auto* pairs = reinterpret_cast<uint32_t*>(to);
  if (!b.transposed) {
    HWY_DYNAMIC_DISPATCH(interleave_rounded_rows)(pairs, width, b.at(term, column), b.stride, terms, columns);
    return;
  }
  uint16_t* rounded = scratch().rounded;
  for (int64_t c = 0; c < columns; c += rounded_columns) {
    const int64_t some = std::min(rounded_columns, columns - c);
    HWY_DYNAMIC_DISPATCH(round_rows)(rounded, depth, b.at(term, column + c), b.stride, some, terms, false);
    if (terms % 2 != 0)
      for (int64_t i = 0; i < some; ++i) rounded[i * depth + terms] = 0;
    fbgemm::transpose_simd<float>(some, (terms + 1) / 2, reinterpret_cast<const float*>(rounded), depth / 2,
                                  reinterpret_cast<float*>(pairs + c), width);
  }
}

void multiply(int64_t rows, int64_t columns, int64_t terms, const float* a, int64_t a_stride, const float* b,
              int64_t b_stride, float* sums, int64_t sums_stride, bool accumulate) {
  at::native::cpublas::brgemm(rows, columns, terms, a_stride, b_stride, sums_stride, accumulate, a, b, sums);
}
void multiply(int64_t rows, int64_t columns, int64_t terms, const uint16_t* a, int64_t a_stride, const uint16_t* b,
              int64_t b_stride, float* sums, int64_t sums_stride, bool accumulate) {
  at::native::cpublas::brgemm(rows, columns, terms, a_stride, b_stride, sums_stride, accumulate,
                              reinterpret_cast<const at::BFloat16*>(a), reinterpret_cast<const at::BFloat16*>(b), sums);
}

struct Part {
  int64_t top, left, rows, columns;
};

// sums [part.rows, part.columns] (+)= a's rows times b's columns.
template <class T, class U>
void multiply_part(float* sums, int64_t sums_stride, const Operand<T>& a, bool copies_a, const Operand<U>& b,
                   const Part& part, int64_t terms, bool accumulate) {
  Scratch& own = scratch();
  for (int64_t k = 0; k < terms; k += depth) {
    const int64_t some = std::min(depth, terms - k), in_memory = stored<T>(some, copies_a);
    const bool copies_b = b.transposed || sizeof(T) != sizeof(float) || in_memory > some;
    const T* rows_of_a = a.at(part.top, k);
    int64_t a_stride = a.stride;
    if (copies_a) {
      T* copy = reinterpret_cast<T*>(own.a);
      a_stride = in_memory + 16;
      for (int64_t r = 0; r < part.rows; r += height)
        copy_a(copy + r * a_stride, a_stride, a, part.top + r, k, std::min(height, part.rows - r), some, in_memory);
      rows_of_a = copy;
    }
    for (int64_t c = 0; c < part.columns; c += width) {
      const int64_t columns = std::min(width, part.columns - c);
      T* copy = reinterpret_cast<T*>(own.b);
      const T* block_of_b = copy;
      if (copies_b) {
        copy_b(copy, b, k, part.left + c, some, columns);
        const int64_t copied = stored<T>(some, false);
        std::fill_n(copy + copied * width, (in_memory - copied) * width, T{0});
      } else if constexpr (std::is_same_v<T, U>) {
        block_of_b = b.at(k, part.left + c);
      }
      for (int64_t r = 0; r < part.rows; r += height)
        multiply(std::min(height, part.rows - r), columns, in_memory, rows_of_a + r * a_stride, a_stride, block_of_b,
                 copies_b ? width : b.stride, sums + r * sums_stride + c, sums_stride, accumulate || k > 0);
    }
  }
}

template <class T, class U>
void multiply_all(const at::Tensor& out, const at::Tensor& a_RM, const at::Tensor& b_MN, bool accumulate) {
  const Operand<T> a(a_RM);
  const Operand<U> b(b_MN);
  const int64_t terms = a_RM.size(1);
  const bool rounds = out.scalar_type() != at::kFloat;
  // Multiplied in pairs where it is, the last term of an odd number would meet the next row's first.
  const bool copies_a = a.transposed || stored<T>(terms, false) != terms;
  const int64_t columns = copies_a && !rounds ? most_columns_of_copied : most_columns;
  const int64_t down = (out.size(0) + most_rows - 1) / most_rows, across = (out.size(1) + columns - 1) / columns;
  cpu::for_tasks(down * across, [&](int64_t i) {
    Part part{i / across * most_rows, i % across * columns, 0, 0};
    part.rows = std::min(most_rows, out.size(0) - part.top);
    part.columns = std::min(columns, out.size(1) - part.left);
    const int64_t first = part.top * out.stride(0) + part.left;
    if (!rounds) {
      multiply_part(cpu::data<float>(out) + first, out.stride(0), a, copies_a, b, part, terms, accumulate);
    } else {
      float* sums = scratch().sums;
      multiply_part(sums, most_columns, a, copies_a, b, part, terms, false);
      HWY_DYNAMIC_DISPATCH(round_rows)
      (cpu::data<uint16_t>(out) + first, out.stride(0), sums, most_columns, part.rows, part.columns, accumulate);
    }
    at::native::cpublas::brgemm_release(sizeof(T) != sizeof(float));  // the tiles of AMX
  });
}

void check_operand(const char* name, const at::Tensor& matrix) {
  check_invariant(matrix.stride(1) == 1 || matrix.stride(0) == 1 || matrix.size(1) <= 1 || matrix.size(0) <= 1,
                  "blocked_product: neither rows nor columns of {} are contiguous", name);
}

}  // namespace

bool cpu::multiplies_in_blocks(at::ScalarType dtype) {
  static const bool has_avx512 =
      at::hasMKLDNN() && cpu_has({"avx512_f", "avx512_bw", "avx512_dq", "avx512_vl"});  // what the kernels ask for
  static const bool has_bf16 = has_avx512 && (cpu_has({"avx512_bf16"}) || cpu_has({"amx_bf16"}));
  return dtype == at::kFloat ? has_avx512 : dtype == at::kBFloat16 && has_bf16;
}

void cpu::blocked_product(at::Tensor out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  RECORD_FUNCTION("conclave::product", c10::ArrayRef<const c10::IValue>());  // for a trace of steps
  check_operand("a", a);
  check_operand("b", b);
  if (out.numel() == 0) return;
  if (a.size(1) == 0) {
    if (!accumulate) out.zero_();
    return;
  }
  if (a.scalar_type() == at::kFloat) return multiply_all<float, float>(out, a, b, accumulate);
  with_elements_of(b, [&](auto element) { multiply_all<uint16_t, decltype(element)>(out, a, b, accumulate); });
}

}  // namespace conclave
#endif
