#include "kernels/rotary.h"

#include "kernels/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rotary_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

using cpu::data;

// Two vectors of elements that lie by turns.
template <class D>
HWY_INLINE void load_pairs(D d, const float* p, hn::Vec<D>& first, hn::Vec<D>& second) {
  hn::LoadInterleaved2(d, p, first, second);
}
template <class D>
HWY_INLINE void store_pairs(hn::Vec<D> first, hn::Vec<D> second, D d, float* p) {
  hn::StoreInterleaved2(first, second, d, p);
}

// In bf16 a pair is one lane of 32 bits, the first element in its lower half.
template <class D>
HWY_INLINE void load_pairs(D d, const uint16_t* p, hn::Vec<D>& first, hn::Vec<D>& second) {
  const hn::Rebind<uint32_t, D> d32;
  const auto pair = hn::LoadU(d32, reinterpret_cast<const uint32_t*>(p));
  first = hn::BitCast(d, hn::ShiftLeft<16>(pair));
  second = hn::BitCast(d, hn::And(pair, hn::Set(d32, 0xffff0000u)));
}
template <class D>
HWY_INLINE void store_pairs(hn::Vec<D> first, hn::Vec<D> second, D d, uint16_t* p) {
  const hn::Rebind<uint32_t, D> d32;
  const auto pair = hn::Or(bf16_bits(d, first), hn::ShiftLeft<16>(bf16_bits(d, second)));
  hn::StoreU(pair, d32, reinterpret_cast<uint32_t*>(p));
}

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), or with -sin.
template <class T>
HWY_INLINE void rotate_head(T* first, const float* cos, const float* sin, int64_t half, bool interleaved,
                            bool inverse) {
  T* second = first + half;
  for_lanes(half, [=](auto d, size_t i) HWY_ATTR {
    const auto c = load(d, cos + i);
    const auto s = inverse ? hn::Neg(load(d, sin + i)) : load(d, sin + i);
    if (interleaved) {
      auto x1 = c, x2 = c;
      load_pairs(d, first + 2 * i, x1, x2);
      store_pairs(hn::NegMulAdd(x2, s, hn::Mul(x1, c)), hn::MulAdd(x1, s, hn::Mul(x2, c)), d, first + 2 * i);
    } else {
      const auto x1 = load(d, first + i), x2 = load(d, second + i);
      store(hn::NegMulAdd(x2, s, hn::Mul(x1, c)), d, first + i);
      store(hn::MulAdd(x1, s, hn::Mul(x2, c)), d, second + i);
    }
  });
}

template <class T>
void rotate(const at::Tensor& rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table, bool inverse,
            int64_t begin, int64_t end) {
  const int64_t sequence = table.cos_SD.size(0), half = table.cos_SD.size(1);
  const int32_t* positions = table.position_T.defined() ? data<int32_t>(table.position_T) : nullptr;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t position = positions != nullptr ? positions[row] : row % sequence;
    const float* cos = data<float>(table.cos_SD) + position * half;
    const float* sin = data<float>(table.sin_SD) + position * half;
    for (int64_t head = 0; head < heads; ++head) {
      rotate_head(data<T>(rows_TN) + row * rows_TN.stride(0) + head * head_dim, cos, sin, half, table.interleaved,
                  inverse);
    }
  }
}

void rotate_rows(const at::Tensor& rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table, bool inverse,
                 int64_t begin, int64_t end) {
  cpu::with_elements_of(
      rows_TN, [&](auto element) { rotate<decltype(element)>(rows_TN, heads, head_dim, table, inverse, begin, end); });
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(rotate_rows);

void cpu::rotary_(at::Tensor rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table, bool inverse) {
  for_rows(rows_TN.size(0), heads * table.dims(), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rotate_rows)(rows_TN, heads, head_dim, table, inverse, begin, end);
  });
}

}  // namespace conclave
#endif  // HWY_ONCE
