// AdamW over flat shards, in one pass, and the sum of squares of a gradient.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

template <int width>
__global__ void adamw_kernel(float* parameter, float* exp_avg, float* exp_avg_sq, const float* grad,
                             AdamwFactors factors, int64_t count) {
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * width;
  if (begin >= count) return;
  float p[width], m[width], v[width], g[width];
  load(p, parameter + begin);
  load(m, exp_avg + begin);
  load(v, exp_avg_sq + begin);
  load(g, grad + begin);
#pragma unroll
  for (int i = 0; i < width; ++i) {
    g[i] *= factors.grad_scale;
    m[i] += factors.one_minus_beta1 * (g[i] - m[i]);
    v[i] = v[i] * factors.beta2 + g[i] * g[i] * factors.one_minus_beta2;
    const float root = sqrtf(v[i]) / factors.root_correction2;
    p[i] = p[i] * factors.keep - factors.step_size * (m[i] / (root + factors.eps));
  }
  store(parameter + begin, p);
  store(exp_avg + begin, m);
  store(exp_avg_sq + begin, v);
}

constexpr int64_t squares_block = 1 << 14;  // elements that one block sums

// A square of fp32 can overflow fp32: every element is widened first.
__global__ void sum_of_squares_kernel(double* partial, const float* x, int64_t count) {
  const int64_t begin = blockIdx.x * squares_block;
  const int64_t end = begin + squares_block < count ? begin + squares_block : count;
  double sum = 0;
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) sum += static_cast<double>(x[i]) * x[i];
  sum = block_reduce(sum, Sum{});
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void sum_of_doubles_kernel(double* sum, const double* values, int64_t count) {
  double own = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) own += values[i];
  own = block_reduce(own, Sum{});
  if (threadIdx.x == 0) *sum = own;
}

}  // namespace

void adamw(Stream stream, float* parameter, float* exp_avg, float* exp_avg_sq, const float* grad,
           const AdamwFactors& factors, int64_t count) {
  with_width<float>(count, {parameter, exp_avg, exp_avg_sq, grad}, [&](auto width) {
    const int threads = threads_for(count / width);
    launch(stream, {.blocks = divided_up(count, width * threads), .threads = threads}, adamw_kernel<width>, parameter,
           exp_avg, exp_avg_sq, grad, factors, count);
  });
}

int64_t sum_of_squares_blocks(int64_t count) {
  return divided_up(count, squares_block);
}

void sum_of_squares(Stream stream, double* partial, const float* x, int64_t count) {
  launch(stream, {.blocks = sum_of_squares_blocks(count), .threads = 256}, sum_of_squares_kernel, partial, x, count);
}

void sum_of_doubles(Stream stream, double* sum, const double* values, int64_t count) {
  launch(stream, {.blocks = 1, .threads = threads_for(count)}, sum_of_doubles_kernel, sum, values, count);
}

}  // namespace conclave::cuda
