// silu(gate) * up * weight and its backward pass, one read and one write of every element.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

// blockIdx: row, stretch of columns.
template <class T, int width>
__global__ void swiglu_forward_kernel(T* out, const T* gate_up, const float* weight, int64_t intermediate) {
  const int64_t row = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * width;
  if (column >= intermediate) return;
  const T* gate_row = gate_up + row * 2 * intermediate + column;
  float gate[width], up[width], value[width];
  load(gate, gate_row);
  load(up, gate_row + intermediate);
#pragma unroll
  for (int i = 0; i < width; ++i) value[i] = gate[i] * sigmoid(gate[i]) * up[i] * weight[row];
  store(out + row * intermediate + column, value);
}

// silu'(g) = sigmoid(g) * (1 + g * (1 - sigmoid(g))). Loads come before stores: outputs may be inputs.
template <class T, int width>
__global__ void swiglu_backward_kernel(T* grad_gate_up, T* activation, float* grad_weight, const T* grad_out,
                                       const T* gate_up, const float* weight, int64_t intermediate) {
  const int64_t row = blockIdx.x;
  const int64_t gate_row = row * 2 * intermediate, out_row = row * intermediate;
  const float w = weight[row];
  float sum = 0;
  for (int64_t column = threadIdx.x * width; column < intermediate; column += blockDim.x * width) {
    float gate[width], up[width], grad[width], grad_gate[width], grad_up[width], out[width];
    load(gate, gate_up + gate_row + column);
    load(up, gate_up + gate_row + intermediate + column);
    load(grad, grad_out + out_row + column);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float s = sigmoid(gate[i]);
      const float silu = gate[i] * s;
      const float product = silu * up[i];
      const float grad_product = grad[i] * w;
      grad_gate[i] = grad_product * up[i] * (s * (1 + gate[i] * (1 - s)));
      grad_up[i] = grad_product * silu;
      out[i] = product * w;
      sum += grad[i] * product;
    }
    store(grad_gate_up + gate_row + column, grad_gate);
    store(grad_gate_up + gate_row + intermediate + column, grad_up);
    store(activation + out_row + column, out);
  }
  sum = block_reduce(sum, Sum{});
  if (threadIdx.x == 0) grad_weight[row] = sum;
}

}  // namespace

void swiglu_forward(Stream stream, Element element, void* out, const void* gate_up, const float* weight, int64_t rows,
                    int64_t intermediate) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>(intermediate, {out, gate_up}, [&](auto width) {
      const int threads = threads_for(intermediate / width);
      launch(stream, {.blocks = rows, .layers = divided_up(intermediate, width * threads), .threads = threads},
             swiglu_forward_kernel<T, width>, static_cast<T*>(out), static_cast<const T*>(gate_up), weight,
             intermediate);
    });
  });
}

void swiglu_backward(Stream stream, Element element, void* grad_gate_up, void* activation, float* grad_weight,
                     const void* grad_out, const void* gate_up, const float* weight, int64_t rows,
                     int64_t intermediate) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>(intermediate, {grad_gate_up, activation, grad_out, gate_up}, [&](auto width) {
      launch(stream, {.blocks = rows, .threads = threads_for(intermediate / width)}, swiglu_backward_kernel<T, width>,
             static_cast<T*>(grad_gate_up), static_cast<T*>(activation), grad_weight, static_cast<const T*>(grad_out),
             static_cast<const T*>(gate_up), weight, intermediate);
    });
  });
}

}  // namespace conclave::cuda
