// What the fast paths of the CPU share: loads and stores that convert between the tensors' dtype and fp32, and loops
// over a row. Included once per instruction set by each `<op>_cpu.cpp` (Google Highway's foreach_target.h; the set is
// chosen at run time by what the machine has).
//
// Element types: float, and uint16_t for the bits of bf16. All arithmetic is fp32.
#include <hwy/highway.h>

#include <cstdint>

#if defined(CONCLAVE_KERNELS_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CONCLAVE_KERNELS_SIMD_INL_H_
#undef CONCLAVE_KERNELS_SIMD_INL_H_
#else
#define CONCLAVE_KERNELS_SIMD_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const float* p) {
  return hn::LoadU(d, p);
}

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const uint16_t* p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<uint32_t, D> d32;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, p))));
}

// The upper halves of fp32 lanes rounded to bf16, to nearest, ties to even; not-a-number becomes the quiet one.
// (Highway 1.0's own demotion truncates.)
template <class D>
HWY_INLINE hn::Vec<hn::Rebind<uint32_t, D>> bf16_bits(D d, hn::Vec<D> v) {
  const hn::Rebind<uint32_t, D> d32;
  const auto bits = hn::BitCast(d32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7fff))));
  return hn::IfThenElse(hn::RebindMask(d32, hn::IsNaN(v)), hn::Set(d32, 0x7fc0), rounded);
}

template <class D>
HWY_INLINE void store(hn::Vec<D> v, D d, float* p) {
  hn::StoreU(v, d, p);
}

template <class D>
HWY_INLINE void store(hn::Vec<D> v, D d, uint16_t* p) {
  const hn::Rebind<uint16_t, D> d16;
  hn::StoreU(hn::TruncateTo(d16, bf16_bits(d, v)), d16, p);
}

// The value as T holds it, still in fp32.
template <class T, class D>
HWY_INLINE hn::Vec<D> rounded_to(D d, hn::Vec<D> v) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return v;
  } else {
    return hn::BitCast(d, hn::ShiftLeft<16>(bf16_bits(d, v)));
  }
}

// f(d, i) for i = 0, lanes, 2 * lanes, ... < n: whole vectors, then groups of four, then single elements.
template <class F>
HWY_INLINE void for_lanes(size_t n, const F& f) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 4> d4;
  const hn::CappedTag<float, 1> d1;
  size_t i = 0;
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) f(d, i);
  for (; i + hn::Lanes(d4) <= n; i += hn::Lanes(d4)) f(d4, i);
  for (; i < n; ++i) f(d1, i);
}

// The sum of f(d, i) over the same i, in an order fixed by n: four running vectors, then the rest.
template <class F>
HWY_INLINE float sum_lanes(size_t n, const F& f) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 4> d4;
  const hn::CappedTag<float, 1> d1;
  const size_t lanes = hn::Lanes(d);
  auto s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    s0 = hn::Add(s0, f(d, i));
    s1 = hn::Add(s1, f(d, i + lanes));
    s2 = hn::Add(s2, f(d, i + 2 * lanes));
    s3 = hn::Add(s3, f(d, i + 3 * lanes));
  }
  for (; i + lanes <= n; i += lanes) s0 = hn::Add(s0, f(d, i));
  float total = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  auto rest = hn::Zero(d4);
  for (; i + hn::Lanes(d4) <= n; i += hn::Lanes(d4)) rest = hn::Add(rest, f(d4, i));
  total += hn::GetLane(hn::SumOfLanes(d4, rest));
  for (; i < n; ++i) total += hn::GetLane(f(d1, i));
  return total;
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
