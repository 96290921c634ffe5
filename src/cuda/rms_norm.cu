// A block has a row, in the backward pass some rows one after the other.
#include "base/cuda_rules.h"
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

// weight * cast(x * rstd) of one row.
template <class T, int width>
__device__ void normalize_row(T* y, const T* x, const T* weight, float rstd, int64_t hidden) {
  for (int64_t column = threadIdx.x * width; column < hidden; column += blockDim.x * width) {
    float value[width], scale[width];
    load(value, x + column);
    load(scale, weight + column);
#pragma unroll
    for (int i = 0; i < width; ++i) value[i] = scale[i] * widened(narrowed<T>(value[i] * rstd));
    store(y + column, value);
  }
}

template <class T, int width>
__global__ void rms_norm_forward_kernel(T* y, float* rstd, const T* x, const T* weight, int64_t hidden, double eps) {
  const int64_t row = blockIdx.x;
  float squares = 0;
  for (int64_t column = threadIdx.x * width; column < hidden; column += blockDim.x * width) {
    float value[width];
    load(value, x + row * hidden + column);
#pragma unroll
    for (int i = 0; i < width; ++i) squares += value[i] * value[i];
  }
  squares = block_reduce(squares, Sum{});
  const auto inverse = static_cast<float>(1 / sqrt(static_cast<double>(squares) / static_cast<double>(hidden) + eps));
  if (threadIdx.x == 0) rstd[row] = inverse;
  normalize_row<T, width>(y + row * hidden, x + row * hidden, weight, inverse, hidden);
}

template <class T, int width>
__global__ void rms_norm_repeat_kernel(T* y, const T* x, const float* rstd, const T* weight, int64_t hidden) {
  const int64_t row = blockIdx.x;
  normalize_row<T, width>(y + row * hidden, x + row * hidden, weight, rstd[row], hidden);
}

// With n = x * rstd and dn = grad_y * weight: grad_x += rstd * (dn - n * mean(dn * n)), and the block's sums of
// grad_y * n go to its row of `partial`. A thread keeps to its columns, so these sums need no barrier; they are in
// shared memory where a row fits there.
template <class T, int width>
__global__ void rms_norm_backward_kernel(T* grad_x, float* partial, const T* grad_y, const T* x, const float* rstd,
                                         const T* weight, int64_t tokens, int64_t hidden, int64_t rows_per_block,
                                         bool in_shared_memory) {
  float* own = partial + blockIdx.x * hidden;
  float* sum = in_shared_memory ? shared_memory<float>() : own;
  const int64_t first = threadIdx.x * width, step = blockDim.x * width;
  for (int64_t column = first; column < hidden; column += step)
    for (int i = 0; i < width; ++i) sum[column + i] = 0;
  const int64_t begin = blockIdx.x * rows_per_block;
  const int64_t end = begin + rows_per_block < tokens ? begin + rows_per_block : tokens;
  for (int64_t row = begin; row < end; ++row) {
    const float r = rstd[row];
    float grad[width], value[width], scale[width], out[width];
    float dot = 0;
    for (int64_t column = first; column < hidden; column += step) {
      load(grad, grad_y + row * hidden + column);
      load(value, x + row * hidden + column);
      load(scale, weight + column);
#pragma unroll
      for (int i = 0; i < width; ++i) dot += grad[i] * scale[i] * (value[i] * r);
    }
    const float mean = block_reduce(dot, Sum{}) / static_cast<float>(hidden);
    for (int64_t column = first; column < hidden; column += step) {
      load(grad, grad_y + row * hidden + column);
      load(value, x + row * hidden + column);
      load(scale, weight + column);
      load(out, grad_x + row * hidden + column);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const float normalized = value[i] * r;
        out[i] += r * (grad[i] * scale[i] - normalized * mean);
        sum[column + i] += grad[i] * normalized;
      }
      store(grad_x + row * hidden + column, out);
    }
  }
  if (!in_shared_memory) return;
  for (int64_t column = first; column < hidden; column += step)
    for (int i = 0; i < width; ++i) own[column + i] = sum[column + i];
}

// grad_weight += the partial sums, block after block.
__global__ void rms_norm_add_partials_kernel(float* grad_weight, const float* partial, int64_t blocks, int64_t hidden) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= hidden) return;
  float sum = grad_weight[column];
  for (int64_t block = 0; block < blocks; ++block) sum += partial[block * hidden + column];
  grad_weight[column] = sum;
}

}  // namespace

void rms_norm_forward(Stream stream, Element element, void* y, float* rstd, const void* x, const void* weight,
                      int64_t tokens, int64_t hidden, double eps) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>(hidden, {y, x, weight}, [&](auto width) {
      launch(stream, {.blocks = tokens, .threads = threads_for(hidden / width)}, rms_norm_forward_kernel<T, width>,
             static_cast<T*>(y), rstd, static_cast<const T*>(x), static_cast<const T*>(weight), hidden, eps);
    });
  });
}

void rms_norm_repeat(Stream stream, Element element, void* y, const void* x, const float* rstd, const void* weight,
                     int64_t tokens, int64_t hidden) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>(hidden, {y, x, weight}, [&](auto width) {
      launch(stream, {.blocks = tokens, .threads = threads_for(hidden / width)}, rms_norm_repeat_kernel<T, width>,
             static_cast<T*>(y), static_cast<const T*>(x), rstd, static_cast<const T*>(weight), hidden);
    });
  });
}

void rms_norm_backward(Stream stream, Element element, void* grad_x, float* grad_weight, float* partial,
                       const void* grad_y, const void* x, const float* rstd, const void* weight, int64_t tokens,
                       int64_t hidden) {
  const int64_t blocks = norm_blocks(tokens), row_bytes = hidden * static_cast<int64_t>(sizeof(float));
  // block_reduce has some of the shared memory too.
  const bool in_shared_memory = row_bytes <= shared_bytes_limit - 1024;
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>(hidden, {grad_x, grad_y, x, weight}, [&](auto width) {
      launch(
          stream,
          {.blocks = blocks, .threads = threads_for(hidden / width), .shared_bytes = in_shared_memory ? row_bytes : 0},
          rms_norm_backward_kernel<T, width>, static_cast<T*>(grad_x), partial, static_cast<const T*>(grad_y),
          static_cast<const T*>(x), rstd, static_cast<const T*>(weight), tokens, hidden, norm_rows_per_block(tokens),
          in_shared_memory);
    });
  });
  constexpr int threads = 64;
  launch(stream, {.blocks = divided_up(hidden, threads), .threads = threads}, rms_norm_add_partials_kernel, grad_weight,
         partial, blocks, hidden);
}

}  // namespace conclave::cuda
