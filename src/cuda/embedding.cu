// The gradient of the embedding table. Tokens come sorted, places of equal ones in order: the block at the first place
// of a token sums its rows, so every entry of the table adds them in token order, without atomics.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

template <class T, int width>
__global__ void embedding_backward_kernel(float* grad_table, const T* grad_out, const int64_t* sorted_token,
                                          const int64_t* order, int64_t tokens, int64_t vocabulary, int64_t hidden) {
  const int64_t place = blockIdx.x, token = sorted_token[place];
  device_check(token >= 0 && token < vocabulary);
  if (place > 0 && sorted_token[place - 1] == token) return;
  int64_t end = place + 1;
  while (end < tokens && sorted_token[end] == token) ++end;
  for (int64_t column = threadIdx.x * width; column < hidden; column += blockDim.x * width) {
    float sum[width], value[width];
    load(sum, grad_table + token * hidden + column);
    for (int64_t i = place; i < end; ++i) {
      load(value, grad_out + order[i] * hidden + column);
#pragma unroll
      for (int j = 0; j < width; ++j) sum[j] += value[j];
    }
    store(grad_table + token * hidden + column, sum);
  }
}

}  // namespace

void embedding_backward(Stream stream, Element element, float* grad_table, const void* grad_out,
                        const int64_t* sorted_token, const int64_t* order, int64_t tokens, int64_t vocabulary,
                        int64_t hidden) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>(hidden, {grad_table, grad_out}, [&](auto width) {
      launch(stream, {.blocks = tokens, .threads = threads_for(hidden / width)}, embedding_backward_kernel<T, width>,
             grad_table, static_cast<const T*>(grad_out), sorted_token, order, tokens, vocabulary, hidden);
    });
  });
}

}  // namespace conclave::cuda
