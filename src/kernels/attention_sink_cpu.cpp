#include "kernels/attention_sink.h"

#include <cmath>

#include "kernels/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention_sink_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h goes first
#include <hwy/highway.h>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace conclave::HWY_NAMESPACE {

using cpu::data;

float sink_of(const float* sink, int64_t head) {
  return sink[head];
}
float sink_of(const uint16_t* sink, int64_t head) {
  return hn::GetLane(load(hn::CappedTag<float, 1>(), sink + head));
}

// f(row, head, the row's and head's logsumexp) for rows [begin, end).
template <class F>
HWY_INLINE void for_heads(const at::Tensor& logsumexp_BNS, int64_t begin, int64_t end, const F& f) {
  const int64_t heads = logsumexp_BNS.size(1), sequence = logsumexp_BNS.size(2);
  for (int64_t row = begin; row < end; ++row)
    for (int64_t head = 0; head < heads; ++head)
      f(row, head, data<float>(logsumexp_BNS) + (row / sequence * heads + head) * sequence + row % sequence);
}

template <class T>
void scale_rows(const at::Tensor& out_TN, const at::Tensor& logsumexp_BNS, const at::Tensor& sink_N, int64_t begin,
                int64_t end) {
  const int64_t columns = out_TN.size(1), head_dim = columns / sink_N.numel();
  for_heads(logsumexp_BNS, begin, end, [&](int64_t row, int64_t head, float* logsumexp) HWY_ATTR {
    const float before = *logsumexp, sink = sink_of(data<T>(sink_N), head);
    const float now = std::max(before, sink) + std::log1p(std::exp(-std::fabs(before - sink)));
    const float factor = std::exp(before - now);
    T* out = data<T>(out_TN) + row * columns + head * head_dim;
    for_lanes(head_dim,
              [=](auto d, size_t i) HWY_ATTR { store(hn::Mul(load(d, out + i), hn::Set(d, factor)), d, out + i); });
    *logsumexp = now;
  });
}

template <class T>
void add_gradients(float* grad_sink, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                   const at::Tensor& logsumexp_BNS, const at::Tensor& sink_N, int64_t begin, int64_t end) {
  const int64_t columns = out_TN.size(1), head_dim = columns / sink_N.numel();
  for_heads(logsumexp_BNS, begin, end, [&](int64_t row, int64_t head, const float* logsumexp) HWY_ATTR {
    const T* out = data<T>(out_TN) + row * columns + head * head_dim;
    const T* grad = data<T>(grad_out_TN) + row * columns + head * head_dim;
    const float delta =
        sum_lanes(head_dim, [=](auto d, size_t i) HWY_ATTR { return hn::Mul(load(d, out + i), load(d, grad + i)); });
    grad_sink[head] -= std::exp(sink_of(data<T>(sink_N), head) - *logsumexp) * delta;
  });
}

void sink_forward_rows(const at::Tensor& out_TN, const at::Tensor& logsumexp_BNS, const at::Tensor& sink_N,
                       int64_t begin, int64_t end) {
  cpu::with_elements_of(
      out_TN, [&](auto element) { scale_rows<decltype(element)>(out_TN, logsumexp_BNS, sink_N, begin, end); });
}

void sink_backward_rows(float* grad_sink, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& sink_N, int64_t begin, int64_t end) {
  cpu::with_elements_of(out_TN, [&](auto element) {
    add_gradients<decltype(element)>(grad_sink, grad_out_TN, out_TN, logsumexp_BNS, sink_N, begin, end);
  });
}

}  // namespace conclave::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace conclave {
HWY_EXPORT(sink_forward_rows);
HWY_EXPORT(sink_backward_rows);

void cpu::sink_forward_(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& sink_N) {
  for_rows(out_TN.size(0), out_TN.size(1), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(sink_forward_rows)(out_TN, logsumexp_BNS, sink_N, begin, end);
  });
}

void cpu::sink_backward(at::Tensor grad_sink_N, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& sink_N) {
  add_in_blocks(grad_sink_N, out_TN.size(0), out_TN.size(1), [&](float* partial, int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(sink_backward_rows)(partial, grad_out_TN, out_TN, logsumexp_BNS, sink_N, begin, end);
  });
}

}  // namespace conclave
#endif  // HWY_ONCE
