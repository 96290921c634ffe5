// What device code finds here in the place of nvcc's headers: the words of CUDA C++, and the functions of a thread.
// emulator.cpp runs the threads of a block as fibers of one host thread, switching where they wait for each other.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Of the running thread.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

// One block runs at a time: what its threads share may be static. Nobody clears it between blocks, on a GPU neither.
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static

namespace conclave::emulator {

// The order in which the threads of a block run between two points where they wait: a kernel that forgets to wait at
// one gives other results in one of them.
enum class ThreadOrder { ascending, descending };
inline ThreadOrder thread_order = ThreadOrder::ascending;

// Runs `thread` for every thread of every block. Throws InvariantError when a thread breaks a device_check, when
// threads of a block wait for others that never come, or when shared memory was written past its end.
void run(dim3 blocks, int threads, int64_t shared_bytes, const std::function<void()>& thread);

void* shared_memory();
void device_check(bool holds);

void wait_for_block();
// Hands `value` to the lanes of the warp and returns that of lane `source`, once all lanes of `mask` are here.
uint64_t exchange(uint32_t mask, uint64_t value, unsigned source);

template <class V>
V exchange_bits(uint32_t mask, V value, unsigned source) {
  static_assert(sizeof(V) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(mask, bits, source);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace conclave::emulator

inline void __syncthreads() {
  conclave::emulator::wait_for_block();
}
inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  conclave::emulator::exchange(mask, 0, 0);
}
template <class V>
V __shfl_xor_sync(uint32_t mask, V value, int lanes) {
  return conclave::emulator::exchange_bits(mask, value, (threadIdx.x % 32) ^ static_cast<unsigned>(lanes));
}

inline float __uint_as_float(uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct __nv_bfloat16 {
  uint16_t bits;
};
// To nearest, ties to even; not-a-number becomes the quiet one.
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (std::isnan(value)) return {0x7fff};
  const uint32_t bits = __float_as_uint(value);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 value) {
  return value.bits;
}

using __nv_fp8_storage_t = unsigned char;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
// To nearest, ties to even; what is too large becomes the largest number.
inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float value, __nv_saturation_t, __nv_fp8_interpretation_t format) {
  if (std::isnan(value)) return 0x7f;
  const bool e4m3 = format == __NV_E4M3;
  const int mantissa_bits = e4m3 ? 3 : 2, least_exponent = e4m3 ? -6 : -14;
  const float magnitude = std::min(std::fabs(value), e4m3 ? 448.0f : 57344.0f);
  const int exponent = std::max(magnitude == 0 ? least_exponent : std::ilogb(magnitude), least_exponent);
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, mantissa_bits - exponent)));
  const int code = ((exponent - least_exponent) << mantissa_bits) + steps;
  return static_cast<__nv_fp8_storage_t>(code | (std::signbit(value) ? 0x80 : 0));
}
