// What the kernels stand on: elements in fp32 or bf16 read and written in packs of up to 16 bytes, sums over a block,
// and launches. The same sources are compiled by nvcc for a GPU and by the C++ compiler for the tests' emulator
// (tests/unit/cuda/emulator), which runs the threads of a block one after the other.
//
// A block has whole warps. All arithmetic is fp32 (statistics: double); sums go by warps and then over warps in order,
// so that a result depends on the shape alone.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#else
#include "emulator/device.h"
#endif

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/launches.h"

namespace conclave::cuda {

// A breach ends the kernel and every later use of the device with an error: an index out of range would be a wild read
// or write.
#ifdef __CUDACC__
__device__ __forceinline__ void device_check(bool holds) {
  if (!holds) __trap();
}
#else
using emulator::device_check;
#endif

struct Bf16 {
  uint16_t bits;
};

__device__ __forceinline__ float widened(float x) {
  return x;
}
__device__ __forceinline__ float widened(Bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

template <class T>
__device__ __forceinline__ T narrowed(float x) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  } else {
    return x;
  }
}

template <class T, int width>
struct alignas(sizeof(T) * width) Pack {
  T element[width];
};

// 16 bytes are the widest access: more elements take several.
template <class T, int width>
inline constexpr int access_width = width * sizeof(T) > 16 ? 16 / sizeof(T) : width;

template <int width, class T>
__device__ __forceinline__ void load(float (&value)[width], const T* from) {
  constexpr int step = access_width<T, width>;
#pragma unroll
  for (int begin = 0; begin < width; begin += step) {
    const auto pack = *reinterpret_cast<const Pack<T, step>*>(from + begin);
#pragma unroll
    for (int i = 0; i < step; ++i) value[begin + i] = widened(pack.element[i]);
  }
}

template <int width, class T>
__device__ __forceinline__ void store(T* to, const float (&value)[width]) {
  constexpr int step = access_width<T, width>;
#pragma unroll
  for (int begin = 0; begin < width; begin += step) {
    Pack<T, step> pack;
#pragma unroll
    for (int i = 0; i < step; ++i) pack.element[i] = narrowed<T>(value[begin + i]);
    *reinterpret_cast<Pack<T, step>*>(to + begin) = pack;
  }
}

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int warp_size = 32;

__device__ __forceinline__ int lane() {
  return static_cast<int>(threadIdx.x % warp_size);
}

// 1 / (1 + exp(-x)) from exp(-|x|), which cannot overflow.
__device__ __forceinline__ float sigmoid(float x) {
  const float small = expf(-fabsf(x));
  return (x < 0 ? small : 1.0f) / (1.0f + small);
}

struct Sum {
  template <class V>
  __device__ V operator()(V a, V b) const {
    return a + b;
  }
};

// Not-a-number counts as the smallest, as in fmaxf.
struct Maximum {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Of all lanes, and every lane gets it.
template <class V, class Combine>
__device__ V warp_reduce(V value, const Combine& combine) {
  for (int distance = warp_size / 2; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(all_lanes, value, distance));
  return value;
}

// Of all threads of the block, and every thread gets it.
template <class V, class Combine>
__device__ V block_reduce(V value, const Combine& combine) {
  __shared__ V of_warp[warp_size];
  value = warp_reduce(value, combine);
  __syncthreads();  // the last result may still be read
  if (lane() == 0) of_warp[threadIdx.x / warp_size] = value;
  __syncthreads();
  V total = of_warp[0];
  for (unsigned warp = 1; warp < blockDim.x / warp_size; ++warp) total = combine(total, of_warp[warp]);
  return total;
}

// The bytes of shared memory that the launch asked for.
template <class V>
__device__ V* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<V*>(bytes);
#else
  return static_cast<V*>(emulator::shared_memory());
#endif
}

// What a block may have of it without asking the device for more.
constexpr int64_t shared_bytes_limit = 48 << 10;

struct Grid {
  int64_t blocks = 0;
  int64_t layers = 1;  // blockIdx.y
  int threads = 0;     // a multiple of 32
  int64_t shared_bytes = 0;
};

inline int64_t divided_up(int64_t count, int64_t by) {
  return (count + by - 1) / by;
}

// Threads for `items` of equal work: whole warps, at most `most`.
inline int threads_for(int64_t items, int most = 256) {
  const int64_t rounded = divided_up(items, warp_size) * warp_size;
  return static_cast<int>(rounded < warp_size ? warp_size : rounded < most ? rounded : most);
}

// An empty grid is ordinary: nothing to do.
template <class... Parameters, class... Arguments>
void launch(Stream stream, const Grid& grid, void (*kernel)(Parameters...), Arguments... arguments) {
  if (grid.blocks == 0 || grid.layers == 0) return;
  const dim3 blocks(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.layers));
#ifdef __CUDACC__
  kernel<<<blocks, grid.threads, grid.shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("a CUDA kernel could not be launched: ") + cudaGetErrorString(error));
#else
  emulator::run(blocks, grid.threads, grid.shared_bytes, [&] { kernel(static_cast<Parameters>(arguments)...); });
#endif
}

// f(T{}) with the T of the elements.
template <class F>
void with_elements(Element element, const F& f) {
  element == Element::fp32 ? f(float{}) : f(Bf16{});
}

// f(width) with the elements of T that one access moves, as a constant: 16 bytes if lengths and strides of the rows
// allow it, else one element.
template <class T, class F>
void with_width(std::initializer_list<int64_t> elements, std::initializer_list<const void*> pointers, const F& f) {
  constexpr int widest = 16 / sizeof(T);
  bool aligned = true;
  for (const int64_t count : elements) aligned = aligned && count % widest == 0;
  for (const void* pointer : pointers) aligned = aligned && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  aligned ? f(std::integral_constant<int, widest>{}) : f(std::integral_constant<int, 1>{});
}
template <class T, class F>
void with_width(int64_t row_elements, std::initializer_list<const void*> pointers, const F& f) {
  with_width<T>({row_elements}, pointers, f);
}

// A matrix of T on the device.
template <class T>
struct RowsOf {
  T* data;
  int64_t stride;
  explicit RowsOf(Matrix matrix) : data(static_cast<T*>(matrix.data)), stride(matrix.stride) {}
  __device__ T* row(int64_t index) const { return data + index * stride; }
};

}  // namespace conclave::cuda
