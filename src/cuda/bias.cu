// Biases of rows that lie one expert after the other, and their gradients.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

// The first bias whose rows end behind this one.
__device__ int64_t bias_of_row(int64_t row, const BiasShape& shape) {
  if (shape.ends == nullptr) return 0;
  int64_t low = 0, high = shape.biases - 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (shape.ends[middle] > row)
      high = middle;
    else
      low = middle + 1;
  }
  device_check(row < shape.ends[low]);
  return low;
}

// As an element of T holds it.
template <class T, class U>
__device__ float rounded(U bias) {
  return widened(narrowed<T>(widened(bias)));
}

// blockIdx: row, stretch of columns.
template <class T, class U>
__global__ void add_bias_kernel(T* y, const U* bias, const float* scale, BiasShape shape) {
  const int64_t row = blockIdx.x;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (column >= shape.columns) return;
  const float factor = scale != nullptr ? scale[row] : 1.0f;
  const float added = factor * rounded<T>(bias[bias_of_row(row, shape) * shape.columns + column]);
  T* to = y + row * shape.stride + column;
  *to = narrowed<T>(widened(*to) + added);
}

// A block has a row.
template <class T, class U>
__global__ void scale_backward_kernel(float* grad_scale, const T* grad_y, const U* bias, BiasShape shape) {
  const int64_t row = blockIdx.x;
  const T* of_row = grad_y + row * shape.columns;
  const U* of_bias = bias + bias_of_row(row, shape) * shape.columns;
  float sum = 0;
  for (int64_t column = threadIdx.x; column < shape.columns; column += blockDim.x)
    sum += widened(of_row[column]) * rounded<T>(of_bias[column]);
  sum = block_reduce(sum, Sum{});
  if (threadIdx.x == 0) grad_scale[row] += sum;
}

constexpr int column_warps = 32;

// A lane has a column, a warp every 32nd row of the bias. blockIdx: columns, bias.
template <class T>
__global__ void bias_backward_kernel(float* grad_bias, const T* grad_y, const float* scale, bool accumulate,
                                     BiasShape shape) {
  __shared__ float of_warp[column_warps][warp_size + 1];
  const int64_t bias = blockIdx.y, column = static_cast<int64_t>(blockIdx.x) * warp_size + lane();
  const int warp = static_cast<int>(threadIdx.x / warp_size);
  const int64_t begin = shape.ends != nullptr && bias > 0 ? shape.ends[bias - 1] : 0;
  const int64_t end = shape.ends != nullptr ? shape.ends[bias] : shape.rows;
  device_check(begin <= end && end <= shape.rows);
  float sum = 0;
  if (column < shape.columns)
    for (int64_t row = begin + warp; row < end; row += column_warps)
      sum += widened(grad_y[row * shape.columns + column]) * (scale != nullptr ? scale[row] : 1.0f);
  of_warp[warp][lane()] = sum;
  __syncthreads();
  if (warp != 0 || column >= shape.columns) return;
  float total = of_warp[0][lane()];
  for (int other = 1; other < column_warps; ++other) total += of_warp[other][lane()];
  float* to = grad_bias + bias * shape.columns + column;
  *to = accumulate ? *to + total : total;
}

}  // namespace

void add_bias(Stream stream, Element element, void* y, const void* bias, const float* scale, const BiasShape& shape) {
  const int threads = threads_for(shape.columns);
  const Grid grid{.blocks = shape.rows, .layers = divided_up(shape.columns, threads), .threads = threads};
  with_elements(element, [&](auto of) {
    with_elements(shape.bias_element, [&](auto of_bias) {
      using T = decltype(of);
      using U = decltype(of_bias);
      launch(stream, grid, add_bias_kernel<T, U>, static_cast<T*>(y), static_cast<const U*>(bias), scale, shape);
    });
  });
}

void bias_scale_backward_add(Stream stream, Element element, float* grad_scale, const void* grad_y, const void* bias,
                             const BiasShape& shape) {
  const Grid grid{.blocks = shape.rows, .threads = threads_for(shape.columns)};
  with_elements(element, [&](auto of) {
    with_elements(shape.bias_element, [&](auto of_bias) {
      using T = decltype(of);
      using U = decltype(of_bias);
      launch(stream, grid, scale_backward_kernel<T, U>, grad_scale, static_cast<const T*>(grad_y),
             static_cast<const U*>(bias), shape);
    });
  });
}

void bias_backward(Stream stream, Element element, float* grad_bias, const void* grad_y, const float* scale,
                   bool accumulate, const BiasShape& shape) {
  const Grid grid{
      .blocks = divided_up(shape.columns, warp_size), .layers = shape.biases, .threads = column_warps * warp_size};
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    launch(stream, grid, bias_backward_kernel<T>, grad_bias, static_cast<const T*>(grad_y), scale, accumulate, shape);
  });
}

}  // namespace conclave::cuda
