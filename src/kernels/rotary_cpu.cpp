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

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), or with -sin.
template <class T>
void rotate(const at::Tensor& qkv_TN, int64_t heads, const at::Tensor& cos_SD, const at::Tensor& sin_SD, bool inverse,
            int64_t begin, int64_t end) {
  const int64_t sequence = cos_SD.size(0), half = cos_SD.size(1);
  for (int64_t row = begin; row < end; ++row) {
    const float* cos = data<float>(cos_SD) + row % sequence * half;
    const float* sin = data<float>(sin_SD) + row % sequence * half;
    for (int64_t head = 0; head < heads; ++head) {
      T* first = data<T>(qkv_TN) + row * qkv_TN.size(1) + head * 2 * half;
      T* second = first + half;
      for_lanes(half, [=](auto d, size_t i) HWY_ATTR {
        const auto c = load(d, cos + i);
        const auto s = inverse ? hn::Neg(load(d, sin + i)) : load(d, sin + i);
        const auto x1 = load(d, first + i), x2 = load(d, second + i);
        store(hn::NegMulAdd(x2, s, hn::Mul(x1, c)), d, first + i);
        store(hn::MulAdd(x1, s, hn::Mul(x2, c)), d, second + i);
      });
    }
  }
}

void rotate_rows(const at::Tensor& qkv_TN, int64_t heads, const at::Tensor& cos_SD, const at::Tensor& sin_SD,
                 bool inverse, int64_t begin, int64_t end) {
  cpu::with_elements_of(
      qkv_TN, [&](auto element) { rotate<decltype(element)>(qkv_TN, heads, cos_SD, sin_SD, inverse, begin, end); });
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(rotate_rows);

void cpu::rotary_(at::Tensor qkv_TN, int64_t heads, const RotaryTable& table, bool inverse) {
  for_rows(qkv_TN.size(0), heads * 2 * table.cos_SD.size(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rotate_rows)(qkv_TN, heads, table.cos_SD, table.sin_SD, inverse, begin, end);
  });
}

}  // namespace conclave
#endif  // HWY_ONCE
