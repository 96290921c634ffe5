// A block has a row of logits: its maximum, the sum of its exponentials, then the gradient over it. The row is read
// three times, from the cache after the first.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

constexpr int64_t ignored_target = -100;

template <class T, int width, bool gradient>
__global__ void cross_entropy_kernel(T* logits, double* loss, const int64_t* targets, int64_t vocabulary,
                                     double scale) {
  T* row = logits + blockIdx.x * vocabulary;
  const int64_t target = targets[blockIdx.x];
  device_check(target == ignored_target || (target >= 0 && target < vocabulary));
  const int64_t first = threadIdx.x * width, step = blockDim.x * width;
  float value[width];
  if (target < 0) {
    if (threadIdx.x == 0) loss[blockIdx.x] = 0;
    for (int i = 0; i < width; ++i) value[i] = 0;
    for (int64_t column = first; gradient && column < vocabulary; column += step) store(row + column, value);
    return;
  }

  float maximum = -INFINITY;
  for (int64_t column = first; column < vocabulary; column += step) {
    load(value, row + column);
#pragma unroll
    for (int i = 0; i < width; ++i) maximum = fmaxf(maximum, value[i]);
  }
  maximum = block_reduce(maximum, Maximum{});
  // A thread adds few terms of a row (V over the threads); their sums go into doubles.
  float own = 0;
  for (int64_t column = first; column < vocabulary; column += step) {
    load(value, row + column);
#pragma unroll
    for (int i = 0; i < width; ++i) own += expf(value[i] - maximum);
  }
  const float target_logit = widened(row[target]);
  const double sum = block_reduce(static_cast<double>(own), Sum{});
  if (threadIdx.x == 0) loss[blockIdx.x] = log(sum) + maximum - target_logit;
  if constexpr (gradient) {
    const auto factor = static_cast<float>(scale / sum);
    for (int64_t column = first; column < vocabulary; column += step) {
      load(value, row + column);
#pragma unroll
      for (int i = 0; i < width; ++i) value[i] = expf(value[i] - maximum) * factor;
      store(row + column, value);
    }
    __syncthreads();
    // The target's entry once more: softmax - 1 in double, so that a confident prediction keeps its digits.
    if (threadIdx.x == 0) {
      const double probability = exp(static_cast<double>(target_logit) - maximum) / sum;
      row[target] = narrowed<T>(static_cast<float>(scale * (probability - 1)));
    }
  }
}

}  // namespace

void cross_entropy(Stream stream, Element element, void* logits, double* loss, const int64_t* targets, int64_t tokens,
                   int64_t vocabulary, bool gradient, double scale) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>(vocabulary, {logits}, [&](auto width) {
      const Grid grid{.blocks = tokens, .threads = threads_for(vocabulary / width, 512)};
      const auto kernel = gradient ? cross_entropy_kernel<T, width, true> : cross_entropy_kernel<T, width, false>;
      launch(stream, grid, kernel, static_cast<T*>(logits), loss, targets, vocabulary, scale);
    });
  });
}

}  // namespace conclave::cuda
