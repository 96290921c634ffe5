// A bias is added to rows, and its gradient is their sum: a block has some rows and a stretch of their columns.
#include "base/cuda_rules.h"
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

template <int width>
__device__ int64_t column_of_thread() {
  return (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * width;
}

template <class T, int width>
__global__ void add_bias_kernel(RowsOf<T> out, RowsOf<T> in, const T* bias, int64_t columns) {
  const int64_t column = column_of_thread<width>();
  if (column >= columns) return;
  float value[width], more[width];
  load(value, bias + column);
  if (in.data != nullptr) {
    load(more, in.row(blockIdx.x) + column);
#pragma unroll
    for (int i = 0; i < width; ++i) value[i] = more[i] + value[i];
  }
  store(out.row(blockIdx.x) + column, value);
}

template <class T, int width>
__global__ void sum_rows_kernel(float* partial, RowsOf<T> grad, int64_t rows, int64_t columns, int64_t rows_per_block) {
  const int64_t column = column_of_thread<width>();
  if (column >= columns) return;
  const int64_t begin = blockIdx.x * rows_per_block;
  const int64_t end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  float sum[width] = {}, value[width];
  for (int64_t row = begin; row < end; ++row) {
    load(value, grad.row(row) + column);
#pragma unroll
    for (int i = 0; i < width; ++i) sum[i] += value[i];
  }
  for (int i = 0; i < width; ++i) partial[blockIdx.x * columns + column + i] = sum[i];
}

__global__ void add_partial_sums_kernel(float* sum, const float* partial, int64_t blocks, int64_t columns) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  float total = sum[column];
  for (int64_t block = 0; block < blocks; ++block) total += partial[block * columns + column];
  sum[column] = total;
}

Grid grid_of(int64_t blocks, int64_t columns, int width) {
  const int threads = threads_for(columns / width);
  return {.blocks = blocks, .layers = divided_up(columns, static_cast<int64_t>(width) * threads), .threads = threads};
}

}  // namespace

void add_bias(Stream stream, Element element, Matrix out, Matrix in, const void* bias, int64_t rows, int64_t columns) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>({columns, out.stride, in.stride}, {out.data, in.data, bias}, [&](auto width) {
      launch(stream, grid_of(rows, columns, width), add_bias_kernel<T, width>, RowsOf<T>(out), RowsOf<T>(in),
             static_cast<const T*>(bias), columns);
    });
  });
}

void bias_gradient(Stream stream, Element element, float* grad_bias, float* partial, Matrix grad, int64_t rows,
                   int64_t columns) {
  const int64_t blocks = norm_blocks(rows);
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>({columns, grad.stride}, {grad.data}, [&](auto width) {
      launch(stream, grid_of(blocks, columns, width), sum_rows_kernel<T, width>, partial, RowsOf<T>(grad), rows,
             columns, norm_rows_per_block(rows));
    });
  });
  add_partial_sums(stream, grad_bias, partial, blocks, columns);
}

void add_partial_sums(Stream stream, float* sum, const float* partial, int64_t blocks, int64_t columns) {
  constexpr int threads = 64;
  launch(stream, {.blocks = divided_up(columns, threads), .threads = threads}, add_partial_sums_kernel, sum, partial,
         blocks, columns);
}

}  // namespace conclave::cuda
