#include "kernels/swiglu.h"

#include "kernels/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/swiglu_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/highway.h>

#include "kernels/sigmoid-inl.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

using cpu::data;

template <class T>
void forward_rows(const at::Tensor& out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R, int64_t begin,
                  int64_t end) {
  const int64_t intermediate = out_RI.size(1);
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = data<T>(gate_up_RJ) + row * 2 * intermediate;
    const T* up = gate + intermediate;
    T* out = data<T>(out_RI) + row * intermediate;
    const float weight = data<float>(weight_R)[row];
    for_lanes(intermediate, [=](auto d, size_t i) HWY_ATTR {
      const auto g = load(d, gate + i);
      const auto product = hn::Mul(hn::Mul(g, sigmoid(d, g)), load(d, up + i));
      store(hn::Mul(product, hn::Set(d, weight)), d, out + i);
    });
  }
}

// silu'(g) = sigmoid(g) * (1 + g * (1 - sigmoid(g))). Loads come before stores: outputs may be inputs.
template <class T>
void backward_rows(const at::Tensor& grad_gate_up_RJ, const at::Tensor& activation_RI, const at::Tensor& grad_weight_R,
                   const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                   int64_t begin, int64_t end) {
  const int64_t intermediate = grad_out_RI.size(1);
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = data<T>(gate_up_RJ) + row * 2 * intermediate;
    const T* up = gate + intermediate;
    const T* grad_out = data<T>(grad_out_RI) + row * intermediate;
    T* grad_gate = data<T>(grad_gate_up_RJ) + row * 2 * intermediate;
    T* grad_up = grad_gate + intermediate;
    T* activation = data<T>(activation_RI) + row * intermediate;
    const float weight = data<float>(weight_R)[row];
    data<float>(grad_weight_R)[row] = sum_lanes(intermediate, [=](auto d, size_t i) HWY_ATTR {
      const auto w = hn::Set(d, weight);
      const auto one = hn::Set(d, 1.0f);
      const auto g = load(d, gate + i);
      const auto u = load(d, up + i);
      const auto dy = load(d, grad_out + i);
      const auto s = sigmoid(d, g);
      const auto silu = hn::Mul(g, s);
      const auto product = hn::Mul(silu, u);
      const auto grad_product = hn::Mul(dy, w);
      const auto slope = hn::Mul(s, hn::MulAdd(g, hn::Sub(one, s), one));
      store(hn::Mul(hn::Mul(grad_product, u), slope), d, grad_gate + i);
      store(hn::Mul(grad_product, silu), d, grad_up + i);
      store(hn::Mul(product, w), d, activation + i);
      return hn::Mul(dy, product);
    });
  }
}

void swiglu_forward_rows(const at::Tensor& out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                         int64_t begin, int64_t end) {
  cpu::with_elements_of(
      out_RI, [&](auto element) { forward_rows<decltype(element)>(out_RI, gate_up_RJ, weight_R, begin, end); });
}

void swiglu_backward_rows(const at::Tensor& grad_gate_up_RJ, const at::Tensor& activation_RI,
                          const at::Tensor& grad_weight_R, const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ,
                          const at::Tensor& weight_R, int64_t begin, int64_t end) {
  cpu::with_elements_of(grad_out_RI, [&](auto element) {
    backward_rows<decltype(element)>(grad_gate_up_RJ, activation_RI, grad_weight_R, grad_out_RI, gate_up_RJ, weight_R,
                                     begin, end);
  });
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(swiglu_forward_rows);
HWY_EXPORT(swiglu_backward_rows);

void cpu::swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R) {
  for_rows(out_RI.size(0), out_RI.size(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(swiglu_forward_rows)(out_RI, gate_up_RJ, weight_R, begin, end);
  });
}

void cpu::swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                          const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R) {
  for_rows(grad_out_RI.size(0), grad_out_RI.size(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(swiglu_backward_rows)
    (grad_gate_up_RJ, activation_RI, grad_weight_R, grad_out_RI, gate_up_RJ, weight_R, begin, end);
  });
}

}  // namespace conclave
#endif  // HWY_ONCE
