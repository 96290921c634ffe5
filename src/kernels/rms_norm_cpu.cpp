#include "kernels/rms_norm.h"

#include <ATen/ops/zeros.h>

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

template <class T>
void forward_rows(const at::Tensor& y_TH, const at::Tensor& rstd_T, const at::Tensor& x_TH, const at::Tensor& weight_H,
                  double eps, int64_t begin, int64_t end) {
  const int64_t hidden = x_TH.size(1);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = data<T>(x_TH) + row * hidden;
    const float squares = sum_lanes(hidden, [=](auto d, size_t i) HWY_ATTR {
      const auto v = load(d, x + i);
      return hn::Mul(v, v);
    });
    const auto rstd = static_cast<float>(1 / std::sqrt(static_cast<double>(squares) / hidden + eps));
    data<float>(rstd_T)[row] = rstd;
    normalize_row(data<T>(y_TH) + row * hidden, x, data<T>(weight_H), rstd, hidden);
  }
}

template <class T>
void repeat_rows(const at::Tensor& y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H,
                 int64_t begin, int64_t end) {
  const int64_t hidden = x_TH.size(1);
  for (int64_t row = begin; row < end; ++row) {
    normalize_row(data<T>(y_TH) + row * hidden, data<T>(x_TH) + row * hidden, data<T>(weight_H),
                  data<float>(rstd_T)[row], hidden);
  }
}

// grad_x of the rows, and their part of grad_weight in `partial` [H]. With n = x * rstd and dn = grad_y * weight: dx =
// rstd * (dn - n * mean(dn * n)).
template <class T>
void backward_rows(const at::Tensor& grad_x_TH, float* partial, const at::Tensor& grad_y_TH, const at::Tensor& x_TH,
                   const at::Tensor& rstd_T, const at::Tensor& weight_H, int64_t begin, int64_t end) {
  const int64_t hidden = x_TH.size(1);
  const T* weight = data<T>(weight_H);
  for (int64_t row = begin; row < end; ++row) {
    T* grad_x = data<T>(grad_x_TH) + row * hidden;
    const T* grad_y = data<T>(grad_y_TH) + row * hidden;
    const T* x = data<T>(x_TH) + row * hidden;
    const float rstd = data<float>(rstd_T)[row];
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
      store(hn::MulAdd(r, grad, load(d, grad_x + i)), d, grad_x + i);
      store(hn::MulAdd(dy, normalized, load(d, partial + i)), d, partial + i);
    });
  }
}

// grad_weight[begin, end) += the partial sums, block after block.
void rms_norm_add_partials(const at::Tensor& grad_weight_H, const at::Tensor& partial_BH, int64_t begin, int64_t end) {
  float* sum = data<float>(grad_weight_H) + begin;
  for (int64_t block = 0; block < partial_BH.size(0); ++block) {
    const float* partial = data<float>(partial_BH) + block * partial_BH.size(1) + begin;
    for_lanes(end - begin,
              [=](auto d, size_t i) HWY_ATTR { store(hn::Add(load(d, sum + i), load(d, partial + i)), d, sum + i); });
  }
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
                            const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H, int64_t begin,
                            int64_t end) {
  cpu::with_elements_of(x_TH, [&](auto element) {
    backward_rows<decltype(element)>(grad_x_TH, partial, grad_y_TH, x_TH, rstd_T, weight_H, begin, end);
  });
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(rms_norm_forward_rows);
HWY_EXPORT(rms_norm_repeat_rows);
HWY_EXPORT(rms_norm_backward_rows);
HWY_EXPORT(rms_norm_add_partials);

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
                            const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H) {
  const int64_t tokens = x_TH.size(0), hidden = x_TH.size(1);
  // Blocks follow from the number of tokens alone, never from the threads: at most 64, of at least 32 tokens.
  const int64_t block = std::max<int64_t>(32, (tokens + 63) / 64);
  const int64_t blocks = (tokens + block - 1) / block;
  const at::Tensor partial_BH = at::zeros({blocks, hidden}, grad_weight_H.options());
  for_rows(blocks, block * hidden, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      HWY_DYNAMIC_DISPATCH(rms_norm_backward_rows)
      (grad_x_TH, data<float>(partial_BH) + b * hidden, grad_y_TH, x_TH, rstd_T, weight_H, b * block,
       std::min(tokens, (b + 1) * block));
    }
  });
  for_rows(hidden, blocks, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rms_norm_add_partials)(grad_weight_H, partial_BH, begin, end);
  });
}

}  // namespace conclave
#endif  // HWY_ONCE
