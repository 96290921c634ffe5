// (up + 1) * gate * sigmoid(slope * gate) * weight, of clamped gate and up in alternating columns, and its backward
// pass, one read and one write of every element.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

template <int width>
struct Clamped {
  float gate[width], up[width], sigmoid_of_gate[width];
  bool gate_is_clamped[width], up_is_clamped[width];
};

// Of `pairs` of gate and up. Not-a-number stays what it is.
template <int width, class T>
__device__ Clamped<width> clamped(const T* pairs, ClampedShape shape) {
  float value[2 * width];
  load(value, pairs);
  Clamped<width> c;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    const float gate = value[2 * i], up = value[2 * i + 1];
    c.gate_is_clamped[i] = gate > shape.limit;
    c.up_is_clamped[i] = fabsf(up) > shape.limit;
    c.gate[i] = c.gate_is_clamped[i] ? shape.limit : gate;
    c.up[i] = c.up_is_clamped[i] ? (up < 0 ? -shape.limit : shape.limit) : up;
    c.sigmoid_of_gate[i] = sigmoid(shape.slope * c.gate[i]);
  }
  return c;
}

// blockIdx: row, stretch of columns.
template <class T, int width>
__global__ void clamped_swiglu_forward_kernel(T* out, const T* gate_up, const float* weight, int64_t intermediate,
                                              ClampedShape shape) {
  const int64_t row = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * width;
  if (column >= intermediate) return;
  const auto c = clamped<width>(gate_up + (row * intermediate + column) * 2, shape);
  float value[width];
#pragma unroll
  for (int i = 0; i < width; ++i) value[i] = (c.up[i] + 1) * (c.gate[i] * c.sigmoid_of_gate[i]) * weight[row];
  store(out + row * intermediate + column, value);
}

// Loads come before stores: outputs may be inputs.
template <class T, int width>
__global__ void clamped_swiglu_backward_kernel(T* grad_gate_up, T* activation, float* grad_weight, const T* grad_out,
                                               const T* gate_up, const float* weight, int64_t intermediate,
                                               ClampedShape shape) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * intermediate;
  const float w = weight[blockIdx.x];
  float sum = 0;
  for (int64_t column = threadIdx.x * width; column < intermediate; column += blockDim.x * width) {
    const auto c = clamped<width>(gate_up + (begin + column) * 2, shape);
    float grad[width], pairs[2 * width], out[width];
    load(grad, grad_out + begin + column);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float s = c.sigmoid_of_gate[i], glu = c.gate[i] * s, product = (c.up[i] + 1) * glu;
      const float grad_product = grad[i] * w;
      const float grad_gate = grad_product * (c.up[i] + 1) * (s * (1 + shape.slope * c.gate[i] * (1 - s)));
      pairs[2 * i] = c.gate_is_clamped[i] ? 0.0f : grad_gate;
      pairs[2 * i + 1] = c.up_is_clamped[i] ? 0.0f : grad_product * glu;
      out[i] = product * w;
      sum += grad[i] * product;
    }
    store(grad_gate_up + (begin + column) * 2, pairs);
    store(activation + begin + column, out);
  }
  sum = block_reduce(sum, Sum{});
  if (threadIdx.x == 0) grad_weight[blockIdx.x] = sum;
}

}  // namespace

void clamped_swiglu_forward(Stream stream, Element element, void* out, const void* gate_up, const float* weight,
                            int64_t rows, int64_t intermediate, ClampedShape shape) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>(intermediate, {out, gate_up}, [&](auto width) {
      const int threads = threads_for(intermediate / width);
      launch(stream, {.blocks = rows, .layers = divided_up(intermediate, width * threads), .threads = threads},
             clamped_swiglu_forward_kernel<T, width>, static_cast<T*>(out), static_cast<const T*>(gate_up), weight,
             intermediate, shape);
    });
  });
}

void clamped_swiglu_backward(Stream stream, Element element, void* grad_gate_up, void* activation, float* grad_weight,
                             const void* grad_out, const void* gate_up, const float* weight, int64_t rows,
                             int64_t intermediate, ClampedShape shape) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>(intermediate, {grad_gate_up, activation, grad_out, gate_up}, [&](auto width) {
      launch(stream, {.blocks = rows, .threads = threads_for(intermediate / width)},
             clamped_swiglu_backward_kernel<T, width>, static_cast<T*>(grad_gate_up), static_cast<T*>(activation),
             grad_weight, static_cast<const T*>(grad_out), static_cast<const T*>(gate_up), weight, intermediate, shape);
    });
  });
}

}  // namespace conclave::cuda
