// A row, which is a head of a token's row where there are several, has a block, or a warp where it is short. In the
// backward pass a block has some rows one after the other.
#include "base/cuda_rules.h"
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

// The threads that have one row together: those of a warp, or of the block.
template <bool of_warp>
struct RowThreads {
  __device__ static int64_t rows_at_once() { return of_warp ? blockDim.x / warp_size : 1; }
  __device__ static int64_t first_row() { return of_warp ? threadIdx.x / warp_size : 0; }
  __device__ static int64_t thread() { return of_warp ? lane() : threadIdx.x; }
  __device__ static int64_t threads() { return of_warp ? warp_size : blockDim.x; }
  __device__ static float sum(float value) {
    if constexpr (of_warp) {
      return warp_reduce(value, Sum{});
    } else {
      return block_reduce(value, Sum{});
    }
  }
};

// Row `row` of all heads.
template <class T>
__device__ T* head_of(const RowsOf<T>& rows, int64_t row, const NormShape& shape) {
  return rows.row(row / shape.heads) + row % shape.heads * shape.hidden;
}

// weight * cast(x * rstd) of one row.
template <class T, int width, class Threads>
__device__ void normalize_row(T* y, const T* x, const T* weight, float rstd, int64_t hidden) {
  for (int64_t column = Threads::thread() * width; column < hidden; column += Threads::threads() * width) {
    float value[width], scale[width];
    load(value, x + column);
    load(scale, weight + column);
#pragma unroll
    for (int i = 0; i < width; ++i) value[i] = scale[i] * widened(narrowed<T>(value[i] * rstd));
    store(y + column, value);
  }
}

template <class T, int width, bool of_warp>
__global__ void rms_norm_forward_kernel(RowsOf<T> y, float* rstd, RowsOf<T> x, const T* weight, NormShape shape,
                                        double eps) {
  using Threads = RowThreads<of_warp>;
  const int64_t row = blockIdx.x * Threads::rows_at_once() + Threads::first_row();
  if (row >= shape.tokens * shape.heads) return;
  const T* from = head_of(x, row, shape);
  float squares = 0;
  for (int64_t column = Threads::thread() * width; column < shape.hidden; column += Threads::threads() * width) {
    float value[width];
    load(value, from + column);
#pragma unroll
    for (int i = 0; i < width; ++i) squares += value[i] * value[i];
  }
  squares = Threads::sum(squares);
  const double mean = static_cast<double>(squares) / static_cast<double>(shape.hidden);
  const auto inverse = static_cast<float>(1 / sqrt(mean + eps));
  if (Threads::thread() == 0) rstd[row] = inverse;
  normalize_row<T, width, Threads>(head_of(y, row, shape), from, weight, inverse, shape.hidden);
}

template <class T, int width, bool of_warp>
__global__ void rms_norm_repeat_kernel(RowsOf<T> y, RowsOf<T> x, const float* rstd, const T* weight, NormShape shape) {
  using Threads = RowThreads<of_warp>;
  const int64_t row = blockIdx.x * Threads::rows_at_once() + Threads::first_row();
  if (row >= shape.tokens * shape.heads) return;
  normalize_row<T, width, Threads>(head_of(y, row, shape), head_of(x, row, shape), weight, rstd[row], shape.hidden);
}

template <class T>
struct NormGradients {
  RowsOf<T> grad_x, grad_y, x;
  const float* rstd;
  const T* weight;
  bool add;  // else grad_x is written, and may be grad_y
};

// With n = x * rstd and dn = grad_y * weight: grad_x += rstd * (dn - n * mean(dn * n)); grad_y * n is added to `sum`.
template <class T, int width, class Threads>
__device__ void backward_of_row(const NormGradients<T>& of, float* sum, int64_t row, const NormShape& shape) {
  const float r = of.rstd[row];
  const T *x = head_of(of.x, row, shape), *grad_y = head_of(of.grad_y, row, shape);
  T* grad_x = head_of(of.grad_x, row, shape);
  const int64_t first = Threads::thread() * width, step = Threads::threads() * width;
  float grad[width], value[width], scale[width], out[width];
  float dot = 0;
  for (int64_t column = first; column < shape.hidden; column += step) {
    load(grad, grad_y + column);
    load(value, x + column);
    load(scale, of.weight + column);
#pragma unroll
    for (int i = 0; i < width; ++i) dot += grad[i] * scale[i] * (value[i] * r);
  }
  const float mean = Threads::sum(dot) / static_cast<float>(shape.hidden);
  for (int64_t column = first; column < shape.hidden; column += step) {
    load(grad, grad_y + column);
    load(value, x + column);
    load(scale, of.weight + column);
    load(out, grad_x + column);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float normalized = value[i] * r;
      out[i] = (of.add ? out[i] : 0.0f) + r * (grad[i] * scale[i] - normalized * mean);
      sum[column + i] += grad[i] * normalized;
    }
    store(grad_x + column, out);
  }
}

// The block's sums of grad_y * n go to its row of `partial`. A thread keeps to its columns, so these sums need no
// barrier; they are in shared memory where a row fits there, and each warp that has rows of its own has sums of its
// own, which are added warp by warp.
template <class T, int width, bool of_warp>
__global__ void rms_norm_backward_kernel(NormGradients<T> of, float* partial, NormShape shape, int64_t rows_per_block,
                                         bool in_shared_memory) {
  using Threads = RowThreads<of_warp>;
  float* own = partial + blockIdx.x * shape.hidden;
  float* sums = in_shared_memory ? shared_memory<float>() : own;
  float* sum = sums + Threads::first_row() * shape.hidden;
  const int64_t first = Threads::thread() * width, step = Threads::threads() * width;
  for (int64_t column = first; column < shape.hidden; column += step)
    for (int i = 0; i < width; ++i) sum[column + i] = 0;
  const int64_t rows = shape.tokens * shape.heads, begin = blockIdx.x * rows_per_block;
  const int64_t end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  for (int64_t row = begin + Threads::first_row(); row < end; row += Threads::rows_at_once())
    backward_of_row<T, width, Threads>(of, sum, row, shape);
  if constexpr (of_warp) {
    __syncthreads();
    for (int64_t column = threadIdx.x; column < shape.hidden; column += blockDim.x) {
      float total = 0;
      for (int64_t warp = 0; warp < Threads::rows_at_once(); ++warp) total += sums[warp * shape.hidden + column];
      own[column] = total;
    }
  } else if (in_shared_memory) {
    for (int64_t column = first; column < shape.hidden; column += step)
      for (int i = 0; i < width; ++i) own[column + i] = sum[column + i];
  }
}

constexpr int warps_of_block = 8;

// f(T{}, width, whether a warp has a row).
template <class F>
void with_rows(Element element, const NormShape& shape, std::initializer_list<Matrix> matrices, const void* weight,
               const F& f) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    constexpr int widest = 16 / sizeof(T);
    bool aligned = shape.hidden % widest == 0 && reinterpret_cast<uintptr_t>(weight) % 16 == 0;
    for (const Matrix& matrix : matrices)
      aligned = aligned && matrix.stride % widest == 0 && reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0;
    const bool is_short = shape.hidden <= warp_size * widest;
    const auto with_width = [&](auto width) {
      is_short ? f(of, width, std::true_type{}) : f(of, width, std::false_type{});
    };
    aligned ? with_width(std::integral_constant<int, widest>{}) : with_width(std::integral_constant<int, 1>{});
  });
}

Grid grid_of(const NormShape& shape, int width, bool of_warp) {
  const int64_t rows = shape.tokens * shape.heads;
  if (of_warp) return {.blocks = divided_up(rows, warps_of_block), .threads = warps_of_block * warp_size};
  return {.blocks = rows, .threads = threads_for(shape.hidden / width)};
}

}  // namespace

void rms_norm_forward(Stream stream, Element element, Matrix y, float* rstd, Matrix x, const void* weight,
                      const NormShape& shape, double eps) {
  with_rows(element, shape, {y, x}, weight, [&](auto of, auto width, auto of_warp) {
    using T = decltype(of);
    launch(stream, grid_of(shape, width, of_warp), rms_norm_forward_kernel<T, width, of_warp>, RowsOf<T>(y), rstd,
           RowsOf<T>(x), static_cast<const T*>(weight), shape, eps);
  });
}

void rms_norm_repeat(Stream stream, Element element, Matrix y, Matrix x, const float* rstd, const void* weight,
                     const NormShape& shape) {
  with_rows(element, shape, {y, x}, weight, [&](auto of, auto width, auto of_warp) {
    using T = decltype(of);
    launch(stream, grid_of(shape, width, of_warp), rms_norm_repeat_kernel<T, width, of_warp>, RowsOf<T>(y),
           RowsOf<T>(x), rstd, static_cast<const T*>(weight), shape);
  });
}

void rms_norm_backward(Stream stream, Element element, Matrix grad_x, float* grad_weight, float* partial, Matrix grad_y,
                       Matrix x, const float* rstd, const void* weight, const NormShape& shape, bool add) {
  const int64_t rows = shape.tokens * shape.heads, blocks = norm_blocks(rows);
  const int64_t row_bytes = shape.hidden * static_cast<int64_t>(sizeof(float));
  with_rows(element, shape, {grad_x, grad_y, x}, weight, [&](auto of, auto width, auto of_warp) {
    using T = decltype(of);
    // block_reduce has some of the shared memory too.
    const bool in_shared_memory = row_bytes <= shared_bytes_limit - 1024;
    Grid grid = grid_of(shape, width, of_warp);
    grid.blocks = blocks;
    grid.shared_bytes = !in_shared_memory ? 0 : of_warp ? warps_of_block * row_bytes : row_bytes;
    const NormGradients<T> gradients{
        RowsOf<T>(grad_x), RowsOf<T>(grad_y), RowsOf<T>(x), rstd, static_cast<const T*>(weight), add};
    launch(stream, grid, rms_norm_backward_kernel<T, width, of_warp>, gradients, partial, shape,
           norm_rows_per_block(rows), in_shared_memory);
  });
  add_partial_sums(stream, grad_weight, partial, blocks, shape.hidden);
}

}  // namespace conclave::cuda
