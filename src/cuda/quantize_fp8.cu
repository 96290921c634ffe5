// fp8 with a scale for each block: the largest magnitude first, as bits, in whose order not-a-number is the largest of
// all; then the scale, a power of two; then every element once more, multiplied by its reciprocal, which is exact.
#ifdef __CUDACC__
#include <cuda_fp8.h>
#endif

#include "base/cuda_rules.h"
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

constexpr int block_elements = static_cast<int>(fp8_block);
constexpr int per_lane = block_elements / warp_size;

// The largest number is 1.75 2^top.
struct E4m3 {
  static constexpr int top = 8;
  static __device__ uint8_t rounded(float x) { return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); }
};
struct E5m2 {
  static constexpr int top = 15;
  static __device__ uint8_t rounded(float x) { return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2); }
};

__device__ uint32_t magnitude_bits(float x) {
  return __float_as_uint(x) & 0x7fffffffu;
}

struct LargestBits {
  __device__ uint32_t operator()(uint32_t a, uint32_t b) const { return a > b ? a : b; }
};

struct Scale {
  float value, reciprocal;
};

template <class Format>
__device__ Scale scale_of(uint32_t largest) {
  constexpr uint32_t infinity = 0x7f800000u, three_quarters = 0x600000u, mantissa = 0x7fffffu;
  constexpr int bias = 127;
  if (largest == 0) return {1.0f, 1.0f};
  if (largest >= infinity) return {__uint_as_float(0x7fc00000u), __uint_as_float(0x7fc00000u)};
  int biased = static_cast<int>(largest >> 23) - Format::top + ((largest & mantissa) > three_quarters ? 1 : 0);
  biased = biased < 1 ? 1 : biased;
  return {__uint_as_float(static_cast<uint32_t>(biased) << 23),
          __uint_as_float(static_cast<uint32_t>(2 * bias - biased) << 23)};
}

// A warp has a block.
template <class T, class Format, int width>
__global__ void quantize_rows_kernel(uint8_t* value, float* scale, const T* x, int64_t rows, int64_t padded_rows,
                                     int64_t columns, int64_t blocks) {
  constexpr int steps = per_lane / width;
  const int64_t task = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / warp_size;
  if (task >= padded_rows * blocks) return;
  const int64_t row = task / blocks, block = task % blocks;
  const int64_t begin = block * block_elements + lane() * width;
  float v[steps][width] = {};
  uint32_t largest = 0;
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    const int64_t column = begin + step * warp_size * width;
    if (row < rows && column < columns) load(v[step], x + row * columns + column);
#pragma unroll
    for (int i = 0; i < width; ++i) largest = LargestBits{}(largest, magnitude_bits(v[step][i]));
  }
  const Scale s = scale_of<Format>(warp_reduce(largest, LargestBits{}));
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    const int64_t column = begin + step * warp_size * width;
    if (column >= columns) continue;
    Pack<uint8_t, width> pack;
#pragma unroll
    for (int i = 0; i < width; ++i) pack.element[i] = Format::rounded(v[step][i] * s.reciprocal);
    *reinterpret_cast<Pack<uint8_t, width>*>(value + row * columns + column) = pack;
  }
  if (lane() == 0) scale[block * padded_rows + row] = s.value;
}

constexpr int column_threads = 256;

// A block has 128 rows of 32 columns: read along the rows, written along the columns.
template <class T, class Format>
__global__ void quantize_columns_kernel(uint8_t* value, float* scale, const T* x, int64_t rows, int64_t padded_rows,
                                        int64_t columns) {
  __shared__ float tile[block_elements][warp_size + 1];
  constexpr int warps = column_threads / warp_size;
  const int warp = static_cast<int>(threadIdx.x / warp_size);
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * warp_size;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * block_elements;
  const int64_t own_column = first_column + lane();
  for (int r = warp; r < block_elements; r += warps)
    tile[r][lane()] =
        own_column < columns && first_row + r < rows ? widened(x[(first_row + r) * columns + own_column]) : 0.0f;
  __syncthreads();
  for (int c = warp; c < warp_size; c += warps) {
    const int64_t column = first_column + c;
    if (column >= columns) break;
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < per_lane; ++i)
      largest = LargestBits{}(largest, magnitude_bits(tile[lane() + i * warp_size][c]));
    const Scale s = scale_of<Format>(warp_reduce(largest, LargestBits{}));
    uint8_t* to = value + column * padded_rows + first_row + lane();
#pragma unroll
    for (int i = 0; i < per_lane; ++i)
      to[i * warp_size] = Format::rounded(tile[lane() + i * warp_size][c] * s.reciprocal);
    if (lane() == 0) scale[blockIdx.y * columns + column] = s.value;
  }
}

constexpr int square_threads = 256;

// A block has a square; blockIdx: its column, its row.
template <class T, bool transposed>
__global__ void quantize_weight_kernel(uint8_t* value, float* scale, int64_t scale_stride, const T* w, int64_t rows,
                                       int64_t columns) {
  [[maybe_unused]] __shared__ uint8_t tile[block_elements][block_elements + 4];
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * block_elements;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * block_elements;
  const int height = static_cast<int>(rows - first_row < block_elements ? rows - first_row : block_elements);
  const int width = static_cast<int>(columns - first_column < block_elements ? columns - first_column : block_elements);
  const T* from = w + first_row * columns + first_column;
  constexpr int elements = block_elements * block_elements;
  uint32_t largest = 0;
  for (int i = static_cast<int>(threadIdx.x); i < elements; i += square_threads) {
    const int r = i / block_elements, c = i % block_elements;
    if (r < height && c < width) largest = LargestBits{}(largest, magnitude_bits(widened(from[r * columns + c])));
  }
  const Scale s = scale_of<E4m3>(block_reduce(largest, LargestBits{}));
  if (threadIdx.x == 0)
    scale[transposed ? blockIdx.x * scale_stride + blockIdx.y : blockIdx.y * scale_stride + blockIdx.x] = s.value;
  for (int i = static_cast<int>(threadIdx.x); i < elements; i += square_threads) {
    const int r = i / block_elements, c = i % block_elements;
    if (r >= height || c >= width) continue;
    const uint8_t rounded = E4m3::rounded(widened(from[r * columns + c]) * s.reciprocal);
    if constexpr (transposed)
      tile[r][c] = rounded;
    else
      value[(first_row + r) * columns + first_column + c] = rounded;
  }
  if constexpr (transposed) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < elements; i += square_threads) {
      const int c = i / block_elements, r = i % block_elements;
      if (r < height && c < width) value[(first_column + c) * rows + first_row + r] = tile[r][c];
    }
  }
}

template <class F>
void with_format(Fp8Format format, const F& f) {
  format == Fp8Format::e4m3 ? f(E4m3{}) : f(E5m2{});
}

}  // namespace

void quantize_rows(Stream stream, Element element, Fp8Format format, uint8_t* value, float* scale, const void* x,
                   int64_t rows, int64_t padded_rows, int64_t columns) {
  constexpr int threads = 256;
  const int64_t blocks = divided_up(columns, block_elements);
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_format(format, [&](auto chosen) {
      using Format = decltype(chosen);
      with_width<T>(columns, {x, value}, [&](auto widest) {
        constexpr int width = widest > 1 ? per_lane : 1;
        launch(stream, {.blocks = divided_up(padded_rows * blocks * warp_size, threads), .threads = threads},
               quantize_rows_kernel<T, Format, width>, value, scale, static_cast<const T*>(x), rows, padded_rows,
               columns, blocks);
      });
    });
  });
}

void quantize_columns(Stream stream, Element element, Fp8Format format, uint8_t* value, float* scale, const void* x,
                      int64_t rows, int64_t padded_rows, int64_t columns) {
  const Grid grid{
      .blocks = divided_up(columns, warp_size), .layers = padded_rows / block_elements, .threads = column_threads};
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_format(format, [&](auto chosen) {
      launch(stream, grid, quantize_columns_kernel<T, decltype(chosen)>, value, scale, static_cast<const T*>(x), rows,
             padded_rows, columns);
    });
  });
}

void quantize_weight(Stream stream, Element element, uint8_t* value, float* scale, int64_t scale_stride, const void* w,
                     int64_t rows, int64_t columns, bool transposed) {
  const Grid grid{.blocks = divided_up(columns, block_elements),
                  .layers = divided_up(rows, block_elements),
                  .threads = square_threads};
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    launch(stream, grid, transposed ? quantize_weight_kernel<T, true> : quantize_weight_kernel<T, false>, value, scale,
           scale_stride, static_cast<const T*>(w), rows, columns);
  });
}

}  // namespace conclave::cuda
