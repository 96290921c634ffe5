#include "kernels/bias.h"

#include "kernels/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/bias_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

using cpu::data;

template <class T>
void add_to_rows(const at::Tensor& out_RN, const at::Tensor& in_RN, const at::Tensor& bias_N, int64_t begin,
                 int64_t end) {
  const T* bias = data<T>(bias_N);
  for (int64_t row = begin; row < end; ++row) {
    T* out = data<T>(out_RN) + row * out_RN.stride(0);
    if (!in_RN.defined()) {
      std::copy_n(bias, bias_N.numel(), out);
      continue;
    }
    const T* in = data<T>(in_RN) + row * in_RN.stride(0);
    for_lanes(bias_N.numel(),
              [=](auto d, size_t i) HWY_ATTR { store(hn::Add(load(d, in + i), load(d, bias + i)), d, out + i); });
  }
}

template <class T>
void sum_of_rows(float* sum, const at::Tensor& grad_RN, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* grad = data<T>(grad_RN) + row * grad_RN.stride(0);
    for_lanes(grad_RN.size(1),
              [=](auto d, size_t i) HWY_ATTR { store(hn::Add(load(d, sum + i), load(d, grad + i)), d, sum + i); });
  }
}

void add_bias_rows(const at::Tensor& out_RN, const at::Tensor& in_RN, const at::Tensor& bias_N, int64_t begin,
                   int64_t end) {
  cpu::with_elements_of(out_RN,
                        [&](auto element) { add_to_rows<decltype(element)>(out_RN, in_RN, bias_N, begin, end); });
}

void add_rows_to_sum(float* sum, const at::Tensor& grad_RN, int64_t begin, int64_t end) {
  cpu::with_elements_of(grad_RN, [&](auto element) { sum_of_rows<decltype(element)>(sum, grad_RN, begin, end); });
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(add_bias_rows);
HWY_EXPORT(add_rows_to_sum);

void cpu::add_bias(at::Tensor out_RN, const at::Tensor& in_RN, const at::Tensor& bias_N) {
  for_rows(out_RN.size(0), out_RN.size(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(add_bias_rows)(out_RN, in_RN, bias_N, begin, end);
  });
}

void cpu::bias_gradient(at::Tensor grad_bias_N, const at::Tensor& grad_RN) {
  add_in_blocks(grad_bias_N, grad_RN.size(0), grad_RN.size(1), [&](float* partial, int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(add_rows_to_sum)(partial, grad_RN, begin, end);
  });
}

}  // namespace conclave
#endif  // HWY_ONCE
