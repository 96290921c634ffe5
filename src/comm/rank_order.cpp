#include "comm/rank_order.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <type_traits>

#include "base/error.h"

namespace conclave {
namespace {

constexpr int64_t block = 2048;  // elements whose running result stays in the first-level cache

// bf16 as bits: the upper half of a float.
struct Bf16 {
  uint16_t bits;
};
float widen(Bf16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}
template <class T>
T widen(T value) {
  return value;
}

template <class T, class Wide>
T narrow(Wide value) {
  if constexpr (std::is_same_v<T, Bf16>) {
    const auto bits = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);  // to nearest, ties to even
    return {static_cast<uint16_t>(std::isnan(value) ? 0x7fc0 : rounded >> 16)};
  } else {
    return value;
  }
}

template <class Wide>
Wide add(Wide a, Wide b) {
  if constexpr (std::is_integral_v<Wide>)
    return static_cast<Wide>(static_cast<std::make_unsigned_t<Wide>>(a) + static_cast<std::make_unsigned_t<Wide>>(b));
  else
    return a + b;
}
template <class Wide>
Wide larger(Wide a, Wide b) {
  if constexpr (std::is_floating_point_v<Wide>)
    if (std::isnan(a)) return a;
  return a > b ? a : b;
}

template <class T>
void reduce_block(T* out, std::span<const void* const> parts, int64_t begin, int64_t count, Reduction reduction) {
  using Wide = decltype(widen(T{}));
  std::array<Wide, block> result;
  const T* first = static_cast<const T*>(parts[0]) + begin;
  for (int64_t i = 0; i < count; ++i) result[i] = widen(first[i]);
  for (const void* part : parts.subspan(1)) {
    const T* next = static_cast<const T*>(part) + begin;
    if (reduction == Reduction::sum) {
      for (int64_t i = 0; i < count; ++i) result[i] = add<Wide>(result[i], widen(next[i]));
    } else {
      for (int64_t i = 0; i < count; ++i) result[i] = larger<Wide>(result[i], widen(next[i]));
    }
  }
  for (int64_t i = 0; i < count; ++i) out[begin + i] = narrow<T>(result[i]);
}

template <class T>
void reduce(void* out, std::span<const void* const> parts, int64_t count, Reduction reduction, Threads threads) {
  const auto run = [&](int64_t first, int64_t last) {
    for (int64_t begin = first; begin < last; begin += block)
      reduce_block(static_cast<T*>(out), parts, begin, std::min(block, last - begin), reduction);
  };
  if (threads == Threads::one) {
    run(0, count);
  } else {
    at::parallel_for(0, count, 16 * block, run);
  }
}

}  // namespace

void reduce_in_order(at::ScalarType dtype, void* out, std::span<const void* const> parts, int64_t count,
                     Reduction reduction, Threads threads) {
  switch (dtype) {
    case at::kFloat:
      return reduce<float>(out, parts, count, reduction, threads);
    case at::kBFloat16:
      return reduce<Bf16>(out, parts, count, reduction, threads);
    case at::kDouble:
      return reduce<double>(out, parts, count, reduction, threads);
    case at::kLong:
      return reduce<int64_t>(out, parts, count, reduction, threads);
    case at::kInt:
      return reduce<int32_t>(out, parts, count, reduction, threads);
    case at::kByte:
      return reduce<uint8_t>(out, parts, count, reduction, threads);
    default:
      check_invariant(false, "no reduction for dtype {}", at::toString(dtype));
  }
}

}  // namespace conclave
