// The fast paths of the CPU, which the entries choose for fp32 and bf16; arguments as in the public headers, already
// checked. SIMD by Google Highway with run-time dispatch, threads by at::parallel_for; results do not depend on the
// number of threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <type_traits>

#include "kernels/kernels.h"

namespace conclave::cpu {

// What cpu_kernels() has that is not the reference's; each is of the type that the table gives it.
// clang-format off
#define CONCLAVE_FOR_EACH_CPU_KERNEL(X) \
  X(multiply) X(weight_gradient) X(attention_forward) X(attention_backward) X(cached_attention) X(sink_forward_) \
  X(sink_backward) X(expand_latent) X(collect_latent) X(rotary_) X(swiglu_forward) X(swiglu_backward) \
  X(clamped_swiglu_forward) X(clamped_swiglu_backward) X(add_bias) X(bias_backward) X(bias_scale_backward_add) \
  X(rms_norm_forward) X(rms_norm_repeat) X(rms_norm_backward) X(cross_entropy) X(cross_entropy_with_gradient_) \
  X(adamw_step) X(sum_of_squares) X(gather_rows) X(pack_rows) X(unpack_rows) X(combine_rows) X(combine_messages) \
  X(order_by_expert) X(route) X(route_to) X(routing_statistics) X(route_backward) X(embedding_forward) \
  X(embedding_backward)
// clang-format on
#define CONCLAVE_DECLARE(op) std::remove_pointer_t<decltype(Kernels::op)> op;
CONCLAVE_FOR_EACH_CPU_KERNEL(CONCLAVE_DECLARE)
#undef CONCLAVE_DECLARE

// f(begin, end) over ranges of rows, in parallel where there is enough to do. f must treat every row alone: the ranges
// depend on the threads.
template <class F>
void for_rows(int64_t rows, int64_t elements_per_row, const F& f) {
  constexpr int64_t elements_per_task = 1
                                        << 15;  // some 10 microseconds of work, well above the cost of waking a thread
  at::parallel_for(0, rows, std::max<int64_t>(1, elements_per_task / std::max<int64_t>(1, elements_per_row)), f);
}

// f(i) for every i < count, in parallel, and inside a parallel region even when there is but one i: a BLAS that f calls
// then keeps to one thread, so that its result does not depend on how many there are. f may call ATen, without a graph.
template <class F>
void for_tasks(int64_t count, const F& f) {
  at::parallel_for(0, std::max<int64_t>(2, count), 1, [&](int64_t begin, int64_t end) {
    const at::NoGradGuard no_grad;  // each thread has a mode of its own
    for (int64_t i = begin; i < std::min(end, count); ++i) f(i);
  });
}

// sum [N] fp32 += sums over rows: f(partial, begin, end) adds those of rows [begin, end) to partial [N], and the
// partial sums are added block after block. Blocks follow from the number of rows alone, never from the threads: at
// most 64, of at least 32 rows.
template <class F>
void add_in_blocks(const at::Tensor& sum_N, int64_t rows, int64_t elements_per_row, const F& f) {
  const int64_t block = std::max<int64_t>(32, (rows + 63) / 64), columns = sum_N.numel();
  const int64_t blocks = (rows + block - 1) / block;
  const at::Tensor partial_BN = at::zeros({blocks, columns}, sum_N.options());
  const auto partial = [&](int64_t b) { return partial_BN.data_ptr<float>() + b * columns; };
  for_rows(blocks, block * elements_per_row, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) f(partial(b), b * block, std::min(rows, (b + 1) * block));
  });
  auto* sum = sum_N.data_ptr<float>();
  for_rows(columns, blocks, [&](int64_t begin, int64_t end) {
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t i = begin; i < end; ++i) sum[i] += partial(b)[i];
  });
}

// The elements of a tensor as the SIMD code sees them: T is float, or uint16_t for the bits of bf16.
template <class T>
T* data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// f(T{}) with the T of the tensor's elements.
template <class F>
void with_elements_of(const at::Tensor& tensor, const F& f) {
  tensor.scalar_type() == at::kFloat ? f(float{}) : f(uint16_t{});
}

}  // namespace conclave::cpu
