#include "kernels/rms_norm.h"

#include <cmath>

#include "kernels/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rms_norm_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

using cpu::data;

template <class T>
HWY_INLINE void normalize_row(T* y, const T* x, const T* weight, float rstd, int64_t hidden) {
  for_lanes(hidden, [=](auto d, size_t i) HWY_ATTR {
    const auto normalized = rounded_to<T>(d, hn::Mul(load(d, x + i), hn::Set(d, rstd)));
    store(hn::Mul(load(d, weight + i), normalized), d, y + i);
  });
}

// f(row, head, head's place in a row of rstd) for the heads of rows [begin, end).
template <class F>
HWY_INLINE void for_heads(const at::Tensor& x_TH, const at::Tensor& weight_H, int64_t begin, int64_t end, const F& f) {
  const int64_t heads = x_TH.size(1) / weight_H.size(0);
  for (int64_t row = begin; row < end; ++row)
    for (int64_t head = 0; head < heads; ++head) f(row, head, row * heads + head);
}

// Where a head begins in rows that lie any distance apart.
template <class T>
HWY_INLINE T* head_of(const at::Tensor& rows_TH, int64_t row, int64_t head, int64_t hidden) {
  return data<T>(rows_TH) + row * rows_TH.stride(0) + head * hidden;
}

template <class T>
void forward_rows(const at::Tensor& y_TH, const at::Tensor& rstd_T, const at::Tensor& x_TH, const at::Tensor& weight_H,
                  double eps, int64_t begin, int64_t end) {
  const int64_t hidden = weight_H.size(0);
  for_heads(x_TH, weight_H, begin, end, [&](int64_t row, int64_t head, int64_t place) HWY_ATTR {
    const T* x = head_of<T>(x_TH, row, head, hidden);
    const float squares = sum_lanes(hidden, [=](auto d, size_t i) HWY_ATTR {
      const auto v = load(d, x + i);
      return hn::Mul(v, v);
    });
    const auto rstd = static_cast<float>(1 / std::sqrt(static_cast<double>(squares) / hidden + eps));
    data<float>(rstd_T)[place] = rstd;
    normalize_row(head_of<T>(y_TH, row, head, hidden), x, data<T>(weight_H), rstd, hidden);
  });
}

template <class T>
void repeat_rows(const at::Tensor& y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H,
                 int64_t begin, int64_t end) {
  const int64_t hidden = weight_H.size(0);
  for_heads(x_TH, weight_H, begin, end, [&](int64_t row, int64_t head, int64_t place) HWY_ATTR {
    normalize_row(head_of<T>(y_TH, row, head, hidden), head_of<T>(x_TH, row, head, hidden), data<T>(weight_H),
                  data<float>(rstd_T)[place], hidden);
  });
}

// grad_x of the rows, and their part of grad_weight in `partial` [H]. With n = x * rstd and dn = grad_y * weight: dx =
// rstd * (dn - n * mean(dn * n)). grad_y may be grad_x.
template <class T>
void backward_rows(const at::Tensor& grad_x_TH, float* partial, const at::Tensor& grad_y_TH, const at::Tensor& x_TH,
                   const at::Tensor& rstd_T, const at::Tensor& weight_H, bool add, int64_t begin, int64_t end) {
  const int64_t hidden = weight_H.size(0);
  const T* weight = data<T>(weight_H);
  for_heads(x_TH, weight_H, begin, end, [&](int64_t row, int64_t head, int64_t place) HWY_ATTR {
    T* grad_x = head_of<T>(grad_x_TH, row, head, hidden);
    const T* grad_y = head_of<T>(grad_y_TH, row, head, hidden);
    const T* x = head_of<T>(x_TH, row, head, hidden);
    const float rstd = data<float>(rstd_T)[place];
    const float dot = sum_lanes(hidden, [=](auto d, size_t i) HWY_ATTR {
      const auto grad_normalized = hn::Mul(load(d, grad_y + i), load(d, weight + i));
      return hn::Mul(grad_normalized, hn::Mul(load(d, x + i), hn::Set(d, rstd)));
    });
    const float mean = dot / static_cast<float>(hidden);
    for_lanes(hidden, [=](auto d, size_t i) HWY_ATTR {
      const auto r = hn::Set(d, rstd);
      const auto normalized = hn::Mul(load(d, x + i), r);
      const auto dy = load(d, grad_y + i);
      const auto grad = hn::NegMulAdd(normalized, hn::Set(d, mean), hn::Mul(dy, load(d, weight + i)));
      store(add ? hn::MulAdd(r, grad, load(d, grad_x + i)) : hn::Mul(r, grad), d, grad_x + i);
      store(hn::MulAdd(dy, normalized, load(d, partial + i)), d, partial + i);
    });
  });
}

void rms_norm_forward_rows(const at::Tensor& y_TH, const at::Tensor& rstd_T, const at::Tensor& x_TH,
                           const at::Tensor& weight_H, double eps, int64_t begin, int64_t end) {
  cpu::with_elements_of(
      x_TH, [&](auto element) { forward_rows<decltype(element)>(y_TH, rstd_T, x_TH, weight_H, eps, begin, end); });
}

void rms_norm_repeat_rows(const at::Tensor& y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T,
                          const at::Tensor& weight_H, int64_t begin, int64_t end) {
  cpu::with_elements_of(
      x_TH, [&](auto element) { repeat_rows<decltype(element)>(y_TH, x_TH, rstd_T, weight_H, begin, end); });
}

void rms_norm_backward_rows(const at::Tensor& grad_x_TH, float* partial, const at::Tensor& grad_y_TH,
                            const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H, bool add,
                            int64_t begin, int64_t end) {
  cpu::with_elements_of(x_TH, [&](auto element) {
    backward_rows<decltype(element)>(grad_x_TH, partial, grad_y_TH, x_TH, rstd_T, weight_H, add, begin, end);
  });
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(rms_norm_forward_rows);
HWY_EXPORT(rms_norm_repeat_rows);
HWY_EXPORT(rms_norm_backward_rows);

void cpu::rms_norm_forward(at::Tensor y_TH, at::Tensor rstd_T, const at::Tensor& x_TH, const at::Tensor& weight_H,
                           double eps) {
  for_rows(x_TH.size(0), x_TH.size(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rms_norm_forward_rows)(y_TH, rstd_T, x_TH, weight_H, eps, begin, end);
  });
}

void cpu::rms_norm_repeat(at::Tensor y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T,
                          const at::Tensor& weight_H) {
  for_rows(x_TH.size(0), x_TH.size(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rms_norm_repeat_rows)(y_TH, x_TH, rstd_T, weight_H, begin, end);
  });
}

void cpu::rms_norm_backward(at::Tensor grad_x_TH, at::Tensor grad_weight_H, const at::Tensor& grad_y_TH,
                            const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H, bool add) {
  add_in_blocks(grad_weight_H, x_TH.size(0), x_TH.size(1), [&](float* partial, int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rms_norm_backward_rows)
    (grad_x_TH, partial, grad_y_TH, x_TH, rstd_T, weight_H, add, begin, end);
  });
}

}  // namespace conclave
#endif  // HWY_ONCE
