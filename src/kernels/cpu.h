// The fast paths of the CPU, which the entries choose for fp32 and bf16; arguments as in the public headers, already
// checked. SIMD by Google Highway with run-time dispatch, threads by at::parallel_for; results do not depend on the
// number of threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/permute.h"
#include "kernels/rotary.h"
#include "kernels/router.h"

namespace conclave::cpu {

void swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R);
void swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                     const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R);

void rms_norm_forward(at::Tensor y_TH, at::Tensor rstd_T, const at::Tensor& x_TH, const at::Tensor& weight_H,
                      double eps);
void rms_norm_repeat(at::Tensor y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H);
void rms_norm_backward(at::Tensor grad_x_TH, at::Tensor grad_weight_H, const at::Tensor& grad_y_TH,
                       const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H);

double cross_entropy(const at::Tensor& logits_CV, const at::Tensor& targets_C);
double cross_entropy_with_gradient_(at::Tensor logits_CV, const at::Tensor& targets_C, double scale);

void adamw_step(at::Tensor parameter, at::Tensor exp_avg, at::Tensor exp_avg_sq, const at::Tensor& grad,
                const AdamwStep& step);
double sum_of_squares(const at::Tensor& x);

void gather_rows(at::Tensor out_RH, const at::Tensor& rows_NH, const at::Tensor& index_R);
void pack_rows(at::Tensor messages_RM, const at::Tensor& rows_NH, const at::Tensor& row_index_R,
               const at::Tensor& weights, const at::Tensor& weight_index_R);
void unpack_rows(at::Tensor rows_RH, at::Tensor weight_R, const at::Tensor& messages_NM, const at::Tensor& index_R);
void combine_rows(at::Tensor out_TH, const at::Tensor& residual_TH, const at::Tensor& rows_RH,
                  const at::Tensor& row_of_choice_TK);
void combine_messages(at::Tensor out_TH, at::Tensor weight_TK, const at::Tensor& messages_RM,
                      const at::Tensor& row_of_choice_TK);
ExpertOrder order_by_expert(const at::Tensor& expert_of_choice_TK, int64_t experts);

void rotary_(at::Tensor qkv_TN, int64_t heads, const RotaryTable& table, bool inverse);

Routing route(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& selection_bias_E);
Routing route_to(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& expert_of_choice_TK);
RoutingStatistics routing_statistics(const Routing& routing, const RouterOptions& options);
void route_backward(at::Tensor grad_logits_TE, const Routing& routing, const RouterOptions& options,
                    const at::Tensor& grad_weight_TK, const at::Tensor& probability_gradient_E, double z_coefficient);

void embedding_forward(at::Tensor out_TH, const at::Tensor& table_VH, const at::Tensor& tokens_T);
void embedding_backward(at::Tensor grad_table_VH, const at::Tensor& grad_out_TH, const at::Tensor& tokens_T);

void attention_forward(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                       const AttentionShape& shape);
void attention_backward(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape);

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
