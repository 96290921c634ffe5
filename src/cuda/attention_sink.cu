// A head's sink takes part in the softmax of all rows. Forward a block has a row; backward it has some rows, one after
// the other, and its warps have the heads.
#include "base/cuda_rules.h"
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

// Of a row and a head, in [B, heads, S].
__device__ int64_t place_of(int64_t row, int64_t head, const SinkShape& shape) {
  return (row / shape.sequence * shape.heads + head) * shape.sequence + row % shape.sequence;
}

__device__ float with_sink(float logsumexp, float sink) {
  return fmaxf(logsumexp, sink) + log1pf(expf(-fabsf(logsumexp - sink)));
}

template <class T, int width>
__global__ void sink_forward_kernel(T* out, float* logsumexp, const T* sink, SinkShape shape) {
  const int64_t row = blockIdx.x, columns = shape.heads * shape.head_dim;
  for (int64_t column = threadIdx.x * width; column < columns; column += blockDim.x * width) {
    const int64_t head = column / shape.head_dim;
    const float before = logsumexp[place_of(row, head, shape)];
    const float factor = expf(before - with_sink(before, widened(sink[head])));
    float value[width];
    load(value, out + row * columns + column);
#pragma unroll
    for (int i = 0; i < width; ++i) value[i] *= factor;
    store(out + row * columns + column, value);
  }
  __syncthreads();  // all have read what is written now
  for (int64_t head = threadIdx.x; head < shape.heads; head += blockDim.x) {
    float& place = logsumexp[place_of(row, head, shape)];
    place = with_sink(place, widened(sink[head]));
  }
}

template <class T, int width>
__global__ void sink_backward_kernel(float* partial, const T* grad_out, const T* out, const float* logsumexp,
                                     const T* sink, SinkShape shape, int64_t rows_per_block) {
  const int64_t columns = shape.heads * shape.head_dim, begin = blockIdx.x * rows_per_block;
  const int64_t end = begin + rows_per_block < shape.rows ? begin + rows_per_block : shape.rows;
  const int64_t warps = blockDim.x / warp_size;
  for (int64_t head = threadIdx.x / warp_size; head < shape.heads; head += warps) {
    float sum = 0;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t place = row * columns + head * shape.head_dim;
      float a[width], b[width], dot = 0;
      for (int64_t dim = lane() * width; dim < shape.head_dim; dim += warp_size * width) {
        load(a, grad_out + place + dim);
        load(b, out + place + dim);
#pragma unroll
        for (int i = 0; i < width; ++i) dot += a[i] * b[i];
      }
      dot = warp_reduce(dot, Sum{});
      sum -= expf(widened(sink[head]) - logsumexp[place_of(row, head, shape)]) * dot;
    }
    if (lane() == 0) partial[blockIdx.x * shape.heads + head] = sum;
  }
}

}  // namespace

void sink_forward(Stream stream, Element element, void* out, float* logsumexp, const void* sink,
                  const SinkShape& shape) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>(shape.head_dim, {out}, [&](auto width) {
      launch(stream, {.blocks = shape.rows, .threads = threads_for(shape.heads * shape.head_dim / width)},
             sink_forward_kernel<T, width>, static_cast<T*>(out), logsumexp, static_cast<const T*>(sink), shape);
    });
  });
}

void sink_backward(Stream stream, Element element, float* grad_sink, float* partial, const void* grad_out,
                   const void* out, const float* logsumexp, const void* sink, const SinkShape& shape) {
  const int64_t blocks = norm_blocks(shape.rows);
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>(shape.head_dim, {grad_out, out}, [&](auto width) {
      launch(stream, {.blocks = blocks, .threads = threads_for(shape.heads * warp_size)},
             sink_backward_kernel<T, width>, partial, static_cast<const T*>(grad_out), static_cast<const T*>(out),
             logsumexp, static_cast<const T*>(sink), shape, norm_rows_per_block(shape.rows));
    });
  });
  add_partial_sums(stream, grad_sink, partial, blocks, shape.heads);
}

}  // namespace conclave::cuda
