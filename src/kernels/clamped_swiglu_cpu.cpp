#include "kernels/clamped_swiglu.h"

#include "kernels/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/clamped_swiglu_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/highway.h>

#include "kernels/sigmoid-inl.h"
#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

using cpu::data;

// Pairs of elements that alternate in memory, as two vectors.
template <class D>
HWY_INLINE void load_pairs(D d, const float* from, hn::Vec<D>& first, hn::Vec<D>& second) {
  hn::LoadInterleaved2(d, from, first, second);
}
template <class D>
HWY_INLINE void load_pairs(D d, const uint16_t* from, hn::Vec<D>& first, hn::Vec<D>& second) {
  const hn::Rebind<uint32_t, D> d32;
  const auto pairs = hn::LoadU(d32, reinterpret_cast<const uint32_t*>(from));
  first = hn::BitCast(d, hn::ShiftLeft<16>(pairs));
  second = hn::BitCast(d, hn::And(pairs, hn::Set(d32, 0xffff0000u)));
}
template <class D>
HWY_INLINE void store_pairs(D d, hn::Vec<D> first, hn::Vec<D> second, float* to) {
  hn::StoreInterleaved2(first, second, d, to);
}
template <class D>
HWY_INLINE void store_pairs(D d, hn::Vec<D> first, hn::Vec<D> second, uint16_t* to) {
  const hn::Rebind<uint32_t, D> d32;
  const auto pairs = hn::Or(bf16_bits(d, first), hn::ShiftLeft<16>(bf16_bits(d, second)));
  hn::StoreU(pairs, d32, reinterpret_cast<uint32_t*>(to));
}

// Gate and up of a row at a place, clamped, and what follows from them. Not-a-number stays what it is.
template <class D>
struct Clamped {
  hn::Vec<D> gate, up, sigmoid_of_gate, glu, product;
  hn::Mask<D> gate_is_clamped, up_is_clamped;
};
template <class T, class D>
HWY_INLINE Clamped<D> clamped(D d, const T* from, float limit, float slope) {
  Clamped<D> c;
  load_pairs(d, from, c.gate, c.up);
  const auto most = hn::Set(d, limit);
  c.gate_is_clamped = hn::Gt(c.gate, most);
  c.up_is_clamped = hn::Gt(hn::Abs(c.up), most);
  c.gate = hn::IfThenElse(c.gate_is_clamped, most, c.gate);
  c.up = hn::IfThenElse(c.up_is_clamped, hn::CopySign(most, c.up), c.up);
  c.sigmoid_of_gate = sigmoid(d, hn::Mul(c.gate, hn::Set(d, slope)));
  c.glu = hn::Mul(c.gate, c.sigmoid_of_gate);
  c.product = hn::MulAdd(c.up, c.glu, c.glu);
  return c;
}

template <class T>
void forward_row(T* out, const T* gate_up, float weight, int64_t intermediate, float limit, float slope) {
  for_lanes(intermediate, [=](auto d, size_t i) HWY_ATTR {
    const auto c = clamped(d, gate_up + 2 * i, limit, slope);
    store(hn::Mul(c.product, hn::Set(d, weight)), d, out + i);
  });
}

// The gradient of the weight. Loads come before stores: outputs may be inputs.
template <class T>
float backward_row(T* grad_gate_up, T* activation, const T* grad_out, const T* gate_up, float weight,
                   int64_t intermediate, float limit, float slope) {
  return sum_lanes(intermediate, [=](auto d, size_t i) HWY_ATTR {
    const auto c = clamped(d, gate_up + 2 * i, limit, slope);
    const auto one = hn::Set(d, 1.0f), w = hn::Set(d, weight);
    const auto dy = load(d, grad_out + i);
    const auto grad_product = hn::Mul(dy, w);
    const auto steepness = hn::Mul(
        c.sigmoid_of_gate, hn::MulAdd(hn::Mul(hn::Set(d, slope), c.gate), hn::Sub(one, c.sigmoid_of_gate), one));
    const auto grad_gate = hn::Mul(hn::Mul(grad_product, hn::Add(c.up, one)), steepness);
    store_pairs(d, hn::IfThenZeroElse(c.gate_is_clamped, grad_gate),
                hn::IfThenZeroElse(c.up_is_clamped, hn::Mul(grad_product, c.glu)), grad_gate_up + 2 * i);
    store(hn::Mul(c.product, w), d, activation + i);
    return hn::Mul(dy, c.product);
  });
}

void clamped_forward_rows(const at::Tensor& out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                          const ClampedSwiglu& shape, int64_t begin, int64_t end) {
  cpu::with_elements_of(out_RI, [&](auto element) {
    using T = decltype(element);
    const int64_t intermediate = out_RI.size(1);
    for (int64_t row = begin; row < end; ++row)
      forward_row(data<T>(out_RI) + row * intermediate, data<T>(gate_up_RJ) + row * 2 * intermediate,
                  data<float>(weight_R)[row], intermediate, static_cast<float>(shape.limit),
                  static_cast<float>(shape.slope));
  });
}

void clamped_backward_rows(const at::Tensor& grad_gate_up_RJ, const at::Tensor& activation_RI,
                           const at::Tensor& grad_weight_R, const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ,
                           const at::Tensor& weight_R, const ClampedSwiglu& shape, int64_t begin, int64_t end) {
  cpu::with_elements_of(grad_out_RI, [&](auto element) {
    using T = decltype(element);
    const int64_t intermediate = grad_out_RI.size(1);
    for (int64_t row = begin; row < end; ++row)
      data<float>(grad_weight_R)[row] = backward_row(
          data<T>(grad_gate_up_RJ) + row * 2 * intermediate, data<T>(activation_RI) + row * intermediate,
          data<T>(grad_out_RI) + row * intermediate, data<T>(gate_up_RJ) + row * 2 * intermediate,
          data<float>(weight_R)[row], intermediate, static_cast<float>(shape.limit), static_cast<float>(shape.slope));
  });
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(clamped_forward_rows);
HWY_EXPORT(clamped_backward_rows);

void cpu::clamped_swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                                 const ClampedSwiglu& shape) {
  for_rows(out_RI.size(0), out_RI.size(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(clamped_forward_rows)(out_RI, gate_up_RJ, weight_R, shape, begin, end);
  });
}

void cpu::clamped_swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                                  const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ,
                                  const at::Tensor& weight_R, const ClampedSwiglu& shape) {
  for_rows(grad_out_RI.size(0), grad_out_RI.size(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(clamped_backward_rows)
    (grad_gate_up_RJ, activation_RI, grad_weight_R, grad_out_RI, gate_up_RJ, weight_R, shape, begin, end);
  });
}

}  // namespace conclave
#endif  // HWY_ONCE
