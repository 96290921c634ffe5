// Rows copied by an index map, alone or with the routing weight behind them. A block has a row.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

template <int bytes>
struct alignas(bytes) Unit {
  char byte[bytes];
};

template <int unit>
__device__ void copy_row(char* out, const char* row, int64_t bytes) {
  using U = Unit<unit>;
  for (int64_t i = threadIdx.x; i < bytes / unit; i += blockDim.x)
    reinterpret_cast<U*>(out)[i] = reinterpret_cast<const U*>(row)[i];
}

// The weight behind a row of an odd number of bf16 is aligned to two bytes only.
__device__ void write_weight(char* to, float weight) {
  const uint32_t bits = __float_as_uint(weight);
  reinterpret_cast<uint16_t*>(to)[0] = static_cast<uint16_t>(bits);
  reinterpret_cast<uint16_t*>(to)[1] = static_cast<uint16_t>(bits >> 16);
}

__device__ float read_weight(const char* from) {
  const auto* half = reinterpret_cast<const uint16_t*>(from);
  return __uint_as_float(half[0] | static_cast<uint32_t>(half[1]) << 16);
}

template <int unit, class Index>
__global__ void gather_rows_kernel(Rows out, Rows rows, int64_t bytes, const Index* index) {
  const int64_t row = index[blockIdx.x];
  device_check(row >= 0 && row < rows.count);
  copy_row<unit>(out.begin + blockIdx.x * out.stride, rows.begin + row * rows.stride, bytes);
}

template <int unit>
__global__ void pack_rows_kernel(Rows messages, Rows rows, int64_t bytes, const int32_t* row_index,
                                 const float* weights, int64_t weight_count, const int32_t* weight_index) {
  const int64_t row = row_index[blockIdx.x], choice = weight_index[blockIdx.x];
  device_check(row >= 0 && row < rows.count && choice >= 0 && choice < weight_count);
  char* message = messages.begin + blockIdx.x * messages.stride;
  copy_row<unit>(message, rows.begin + row * rows.stride, bytes);
  if (threadIdx.x == 0) write_weight(message + bytes, weights[choice]);
  const int64_t padding = bytes + static_cast<int64_t>(sizeof(float)) + threadIdx.x * 2;
  for (int64_t at = padding; at < messages.stride; at += blockDim.x * 2) *reinterpret_cast<uint16_t*>(message + at) = 0;
}

template <int unit>
__global__ void unpack_rows_kernel(Rows rows, float* weight, Rows messages, int64_t bytes, const int32_t* index) {
  const int64_t from = index[blockIdx.x];
  device_check(from >= 0 && from < messages.count);
  const char* message = messages.begin + from * messages.stride;
  copy_row<unit>(rows.begin + blockIdx.x * rows.stride, message, bytes);
  if (threadIdx.x == 0) weight[blockIdx.x] = read_weight(message + bytes);
}

// out = residual (if any) + the sum of the token's rows, in the order of its choices, rounded once.
template <class T, int width>
__global__ void combine_kernel(T* out, float* weight, const T* residual, Rows rows, const int32_t* row_of_choice,
                               int64_t top_k, int64_t hidden) {
  const int64_t token = blockIdx.x;
  const int32_t* row_of = row_of_choice + token * top_k;
  for (int64_t column = threadIdx.x * width; column < hidden; column += blockDim.x * width) {
    float sum[width], value[width];
#pragma unroll
    for (int i = 0; i < width; ++i) sum[i] = 0;
    for (int64_t k = 0; k < top_k; ++k) {
      const int64_t row = row_of[k];
      if (row < 0) continue;
      device_check(row < rows.count);
      load(value, reinterpret_cast<const T*>(rows.begin + row * rows.stride) + column);
#pragma unroll
      for (int i = 0; i < width; ++i) sum[i] += value[i];
    }
    if (residual != nullptr) {
      load(value, residual + token * hidden + column);
#pragma unroll
      for (int i = 0; i < width; ++i) sum[i] = value[i] + sum[i];
    }
    store(out + token * hidden + column, sum);
  }
  if (weight == nullptr) return;
  for (int64_t k = threadIdx.x; k < top_k; k += blockDim.x) {
    const int64_t row = row_of[k];
    const int64_t row_bytes = hidden * static_cast<int64_t>(sizeof(T));
    weight[token * top_k + k] = row < 0 ? 0.0f : read_weight(rows.begin + row * rows.stride + row_bytes);
  }
}

// f(unit) with the widest access, as a constant, that every row of both allows.
template <class F>
void with_unit(const Rows& a, const Rows& b, int64_t bytes, const F& f) {
  const auto common =
      static_cast<int64_t>(reinterpret_cast<uintptr_t>(a.begin) | reinterpret_cast<uintptr_t>(b.begin)) | a.stride |
      b.stride | bytes;
  if (common % 16 == 0) return f(std::integral_constant<int, 16>{});
  if (common % 4 == 0) return f(std::integral_constant<int, 4>{});
  f(std::integral_constant<int, 2>{});
}

template <class Index>
void gather(Stream stream, Rows out, Rows rows, int64_t bytes, const Index* index) {
  with_unit(out, rows, bytes, [&](auto unit) {
    launch(stream, {.blocks = out.count, .threads = threads_for(bytes / unit)}, gather_rows_kernel<unit, Index>, out,
           rows, bytes, index);
  });
}

}  // namespace

void gather_rows(Stream stream, Rows out, Rows rows, int64_t bytes, const int32_t* index) {
  gather(stream, out, rows, bytes, index);
}

void gather_rows(Stream stream, Rows out, Rows rows, int64_t bytes, const int64_t* index) {
  gather(stream, out, rows, bytes, index);
}

void pack_rows(Stream stream, Rows messages, Rows rows, int64_t bytes, const int32_t* row_index, const float* weights,
               int64_t weight_count, const int32_t* weight_index) {
  with_unit(messages, rows, bytes, [&](auto unit) {
    launch(stream, {.blocks = messages.count, .threads = threads_for(bytes / unit)}, pack_rows_kernel<unit>, messages,
           rows, bytes, row_index, weights, weight_count, weight_index);
  });
}

void unpack_rows(Stream stream, Rows rows, float* weight, Rows messages, int64_t bytes, const int32_t* index) {
  with_unit(rows, messages, bytes, [&](auto unit) {
    launch(stream, {.blocks = rows.count, .threads = threads_for(bytes / unit)}, unpack_rows_kernel<unit>, rows, weight,
           messages, bytes, index);
  });
}

void combine(Stream stream, Element element, void* out, float* weight, const void* residual, Rows rows,
             const int32_t* row_of_choice, int64_t tokens, int64_t top_k, int64_t hidden) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    const int64_t whole = rows.stride % 16 == 0 ? hidden : 1;
    with_width<T>(whole, {out, residual, rows.begin}, [&](auto width) {
      launch(stream, {.blocks = tokens, .threads = threads_for(hidden / width)}, combine_kernel<T, width>,
             static_cast<T*>(out), weight, static_cast<const T*>(residual), rows, row_of_choice, top_k, hidden);
    });
  });
}

}  // namespace conclave::cuda
