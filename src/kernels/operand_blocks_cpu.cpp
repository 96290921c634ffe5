#include <ATen/native/CPUBlas.h>
#include <fbgemm/Utils.h>

#include <memory>

#include "kernels/operand_blocks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/operand_blocks_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/cache_control.h>
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

// Whole vectors at their own alignment pass the caches; what lies before and behind them does not.
void stream_rows(float* out, int64_t out_stride, const float* sums, int64_t stride, int64_t rows, int64_t columns) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t r = 0; r < rows; ++r) {
    float* to = out + r * out_stride;
    const float* sum = sums + r * stride;
    const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) / sizeof(float)) % lanes;
    int64_t i = std::min(columns, (lanes - past) % lanes);
    std::copy_n(sum, i, to);
    for (; i + lanes <= columns; i += lanes) hn::Stream(hn::LoadU(d, sum + i), d, to + i);
    std::copy_n(sum + i, columns - i, to + i);
  }
  hwy::FlushStream();
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(interleave_rows);
HWY_EXPORT(interleave_rounded_rows);
HWY_EXPORT(round_rows);
HWY_EXPORT(stream_rows);

namespace {

// Columns of a transposed fp32 block of b that are rounded to bf16 before they are transposed: they stay in the
// first-level cache.
constexpr int64_t rounded_columns = 16;

}  // namespace

cpu::BlockScratch& cpu::block_scratch() {
  thread_local const auto own = std::make_unique<BlockScratch>();
  return *own;
}

template <class T>
void cpu::copy_a(T* to, int64_t to_stride, const Operand<T>& a, int64_t row, int64_t term, int64_t rows, int64_t terms,
                 int64_t in_memory) {
  if (a.transposed)
    fbgemm::transpose_simd<T>(terms, rows, a.at(row, term), a.stride, to, to_stride);
  else
    for (int64_t r = 0; r < rows; ++r) std::copy_n(a.at(row + r, term), terms, to + r * to_stride);
  for (int64_t r = 0; r < rows; ++r) std::fill_n(to + r * to_stride + terms, in_memory - terms, T{0});
}
template void cpu::copy_a(float*, int64_t, const Operand<float>&, int64_t, int64_t, int64_t, int64_t, int64_t);
template void cpu::copy_a(uint16_t*, int64_t, const Operand<uint16_t>&, int64_t, int64_t, int64_t, int64_t, int64_t);

void cpu::copy_b(float* to, int64_t to_stride, const Operand<float>& b, int64_t term, int64_t column, int64_t terms,
                 int64_t columns) {
  if (b.transposed)
    fbgemm::transpose_simd<float>(columns, terms, b.at(term, column), b.stride, to, to_stride);
  else
    for (int64_t k = 0; k < terms; ++k) std::copy_n(b.at(term + k, column), columns, to + k * to_stride);
}

void cpu::copy_b(uint16_t* to, int64_t to_stride, const Operand<uint16_t>& b, int64_t term, int64_t column,
                 int64_t terms, int64_t columns) {
  const uint16_t* from = b.at(term, column);
  if (b.transposed && terms % 2 == 0 && b.stride % 2 == 0 && reinterpret_cast<uintptr_t>(from) % sizeof(float) == 0) {
    fbgemm::transpose_simd<float>(columns, terms / 2, reinterpret_cast<const float*>(from), b.stride / 2,
                                  reinterpret_cast<float*>(to), to_stride);
  } else if (b.transposed) {
    for (int64_t k = 0; k < (terms + 1) / 2 * 2; ++k)
      for (int64_t c = 0; c < columns; ++c)
        to[(k / 2 * to_stride + c) * 2 + k % 2] = k < terms ? from[c * b.stride + k] : uint16_t{0};
  } else {
    HWY_DYNAMIC_DISPATCH(interleave_rows)
    (reinterpret_cast<uint32_t*>(to), to_stride, from, b.stride, terms, columns);
  }
}

void cpu::copy_b(uint16_t* to, int64_t to_stride, const Operand<float>& b, int64_t term, int64_t column, int64_t terms,
                 int64_t columns) {
  auto* pairs = reinterpret_cast<uint32_t*>(to);
  if (!b.transposed) {
    HWY_DYNAMIC_DISPATCH(interleave_rounded_rows)(pairs, to_stride, b.at(term, column), b.stride, terms, columns);
    return;
  }
  uint16_t* rounded = block_scratch().rounded;
  for (int64_t c = 0; c < columns; c += rounded_columns) {
    const int64_t some = std::min(rounded_columns, columns - c);
    round_rows(rounded, rounded_stride, b.at(term, column + c), b.stride, some, terms, false);
    if (terms % 2 != 0)
      for (int64_t i = 0; i < some; ++i) rounded[i * rounded_stride + terms] = 0;
    fbgemm::transpose_simd<float>(some, (terms + 1) / 2, reinterpret_cast<const float*>(rounded), rounded_stride / 2,
                                  reinterpret_cast<float*>(pairs + c), to_stride);
  }
}

template <class U>
void cpu::copy_panels_of_b(uint16_t* to, const Operand<U>& b, int64_t term, int64_t column, int64_t terms,
                           int64_t columns) {
  const int64_t at_once = b.transposed ? terms : 2;
  for (int64_t k = 0; k < terms; k += at_once)
    for (int64_t c = 0; c < columns; c += block_columns)
      copy_b(to + c / block_columns * panel_stride + k * block_columns, block_columns, b, term + k, column + c,
             std::min(at_once, terms - k), std::min(block_columns, columns - c));
}
template void cpu::copy_panels_of_b(uint16_t*, const Operand<float>&, int64_t, int64_t, int64_t, int64_t);
template void cpu::copy_panels_of_b(uint16_t*, const Operand<uint16_t>&, int64_t, int64_t, int64_t, int64_t);

void cpu::round_rows(uint16_t* to, int64_t to_stride, const float* from, int64_t stride, int64_t rows, int64_t columns,
                     bool accumulate) {
  HWY_DYNAMIC_DISPATCH(round_rows)(to, to_stride, from, stride, rows, columns, accumulate);
}

void cpu::stream_rows(float* to, int64_t to_stride, const float* from, int64_t stride, int64_t rows, int64_t columns) {
  HWY_DYNAMIC_DISPATCH(stream_rows)(to, to_stride, from, stride, rows, columns);
}

void cpu::multiply_block(int64_t rows, int64_t columns, int64_t terms, const float* a, int64_t a_stride, const float* b,
                         int64_t b_stride, float* sums, int64_t sums_stride, bool accumulate) {
  at::native::cpublas::brgemm(rows, columns, terms, a_stride, b_stride, sums_stride, accumulate, a, b, sums);
}

void cpu::multiply_block(int64_t rows, int64_t columns, int64_t terms, const uint16_t* a, int64_t a_stride,
                         const uint16_t* b, int64_t b_stride, float* sums, int64_t sums_stride, bool accumulate) {
  at::native::cpublas::brgemm(rows, columns, terms, a_stride, b_stride, sums_stride, accumulate,
                              reinterpret_cast<const at::BFloat16*>(a), reinterpret_cast<const at::BFloat16*>(b), sums);
}

}  // namespace conclave
#endif
