// What each device computes by: one table of functions for each kind of device. The entries in the public headers check
// their arguments and call the table of the tensors' device; here arguments are as there, already checked.
//
//   reference_kernels  plain ATen, on any device and in any dtype
//   cpu_kernels()      fp32 and bf16 on the CPU (kernels/cpu.h); what has no faster form is the reference's
//   CUDA's             in the plug-in (src/cuda), which this library must not link: whoever loads it hands its table
//   over on paper           device/paper_kernels.cpp: nothing is computed, costs are counted (PyTorch's meta tensors)
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cached_attention.h"
#include "kernels/clamped_swiglu.h"
#include "kernels/fp8_quantize.h"
#include "kernels/jitter.h"
#include "kernels/latent_heads.h"
#include "kernels/permute.h"
#include "kernels/rotary.h"
#include "kernels/router.h"

namespace conclave {

struct Kernels {
  // out [R,N] = a [R,M] b [M,N], or out += a b. b may be fp32 where a is bf16: it is rounded as it is read.
  void (*multiply)(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate);
  // grad_w = or += grad_y^T x, of bf16 into fp32.
  void (*weight_gradient)(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM, bool accumulate);
  at::Tensor (*grouped_product)(const at::Tensor& row_RM, const at::Tensor& matrix_LMN, const at::Tensor& ends_L);
  // f(0) to f(count - 1), which may overlap on the device: none of them writes what another one reads or writes, or
  // allocates. What comes before and after them does not overlap.
  void (*overlapping)(int64_t count, const std::function<void(int64_t)>& f);

  void (*attention_forward)(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& qkv_TM,
                            const AttentionShape& shape);
  void (*attention_backward)(at::Tensor grad_qkv_TM, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                             const at::Tensor& logsumexp_BNS, const at::Tensor& qkv_TM, const AttentionShape& shape);
  void (*cached_attention)(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& query_TM,
                           std::span<const CachedKeys> sequences, const AttentionShape& shape);
  void (*sink_forward_)(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& sink_N);
  void (*sink_backward)(at::Tensor grad_sink_N, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                        const at::Tensor& logsumexp_BNS, const at::Tensor& sink_N);
  void (*expand_latent)(at::Tensor qkv_TM, const at::Tensor& kv_TX, const at::Tensor& rotary_TR,
                        const LatentHeads& heads);
  void (*collect_latent)(at::Tensor grad_kv_TX, at::Tensor grad_rotary_TR, const at::Tensor& grad_qkv_TM,
                         const LatentHeads& heads);
  RotaryTable (*rotary_table)(int64_t sequence_length, const RotaryOptions& options, at::Device device);
  void (*rotary_)(at::Tensor rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table, bool inverse);

  void (*swiglu_forward)(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R);
  void (*swiglu_backward)(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                          const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R);

  void (*clamped_swiglu_forward)(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R,
                                 const ClampedSwiglu& shape);
  void (*clamped_swiglu_backward)(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                                  const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ,
                                  const at::Tensor& weight_R, const ClampedSwiglu& shape);

  void (*add_bias)(const at::Tensor& y_RN, const at::Tensor& bias_LN, const at::Tensor& scale_R,
                   const at::Tensor& ends_L);
  void (*bias_backward)(const at::Tensor& grad_bias_LN, const at::Tensor& grad_y_RN, bool accumulate,
                        const at::Tensor& scale_R, const at::Tensor& ends_L);
  void (*bias_scale_backward_add)(const at::Tensor& grad_scale_R, const at::Tensor& grad_y_RN,
                                  const at::Tensor& bias_LN, const at::Tensor& ends_L);

  void (*rms_norm_forward)(at::Tensor y_TH, at::Tensor rstd_T, const at::Tensor& x_TH, const at::Tensor& weight_H,
                           double eps);
  void (*rms_norm_repeat)(at::Tensor y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T,
                          const at::Tensor& weight_H);
  // grad_x += or, without `add`, =; then grad_y may be grad_x.
  void (*rms_norm_backward)(at::Tensor grad_x_TH, at::Tensor grad_weight_H, const at::Tensor& grad_y_TH,
                            const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H, bool add);

  // One double, where the logits are.
  at::Tensor (*cross_entropy)(const at::Tensor& logits_CV, const at::Tensor& targets_C);
  at::Tensor (*cross_entropy_with_gradient_)(at::Tensor logits_CV, const at::Tensor& targets_C, double scale);

  void (*adamw_step)(at::Tensor parameter, at::Tensor exp_avg, at::Tensor exp_avg_sq, const at::Tensor& grad,
                     const AdamwStep& step);
  at::Tensor (*sum_of_squares)(const at::Tensor& x);  // one double, where x is

  void (*gather_rows)(at::Tensor out_RH, const at::Tensor& rows_NH, const at::Tensor& index_R);
  void (*pack_rows)(at::Tensor messages_RM, const at::Tensor& rows_NH, const at::Tensor& row_index_R,
                    const at::Tensor& weights, const at::Tensor& weight_index_R);
  void (*unpack_rows)(at::Tensor rows_RH, at::Tensor weight_R, const at::Tensor& messages_NM,
                      const at::Tensor& index_R);
  void (*combine_rows)(at::Tensor out_TH, const at::Tensor& residual_TH, const at::Tensor& rows_RH,
                       const at::Tensor& row_of_choice_TK);
  void (*combine_messages)(at::Tensor out_TH, at::Tensor weight_TK, const at::Tensor& messages_RM,
                           const at::Tensor& row_of_choice_TK);
  // The one that waits for the device, because the host needs the counts.
  ExpertOrder (*order_by_expert)(const at::Tensor& expert_of_choice_TK, int64_t experts,
                                 const at::Tensor& assumed_count_E);
  ArrivalOrder (*order_arrivals)(const std::vector<int64_t>& received, int64_t sources, at::Device device);

  Routing (*route)(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& selection_bias_E);
  Routing (*route_to)(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& expert_of_choice_TK);
  at::Tensor (*shares_of)(const at::Tensor& wanted_TE, int64_t top_k);
  RoutingStatistics (*routing_statistics)(const Routing& routing, const RouterOptions& options);
  void (*route_backward)(at::Tensor grad_logits_TE, const Routing& routing, const RouterOptions& options,
                         const at::Tensor& grad_weight_TK, const at::Tensor& probability_gradient_E,
                         double z_coefficient);
  void (*jitter_)(at::Tensor rows_TH, const Jitter& jitter);

  void (*embedding_forward)(at::Tensor out_TH, const at::Tensor& table_VH, const at::Tensor& tokens_T);
  void (*embedding_backward)(at::Tensor grad_table_VH, const at::Tensor& grad_out_TH, const at::Tensor& tokens_T);

  Fp8Matrix (*quantize_rows)(const at::Tensor& x_RM, at::ScalarType format);
  Fp8Matrix (*quantize_columns)(const at::Tensor& x_RM, at::ScalarType format);
  Fp8Matrix (*quantize_weight)(const at::Tensor& w_NM, bool transposed);
  void (*fp8_product)(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate);

  // kernels/values.h
  void (*copy)(const at::Tensor& to, const at::Tensor& from);
  void (*add)(const at::Tensor& to, const at::Tensor& from);
  at::Tensor (*take)(const at::Tensor& values, const at::Tensor& index_R);
  at::Tensor (*to_host)(const at::Tensor& tensor, const at::Tensor& assumed);
};

// Every member, for tables whose functions are all of one namespace.
// clang-format off
#define CONCLAVE_FOR_EACH_KERNEL(X) \
  X(multiply) X(weight_gradient) X(grouped_product) X(overlapping) X(attention_forward) X(attention_backward) \
  X(cached_attention) X(sink_forward_) X(sink_backward) X(expand_latent) X(collect_latent) X(rotary_table) X(rotary_) \
  X(swiglu_forward) X(swiglu_backward) X(clamped_swiglu_forward) X(clamped_swiglu_backward) X(add_bias) \
  X(bias_backward) X(bias_scale_backward_add) X(rms_norm_forward) X(rms_norm_repeat) X(rms_norm_backward) \
  X(cross_entropy) X(cross_entropy_with_gradient_) X(adamw_step) X(sum_of_squares) \
  X(gather_rows) X(pack_rows) X(unpack_rows) X(combine_rows) X(combine_messages) X(order_by_expert) \
  X(order_arrivals) X(route) X(route_to) X(shares_of) X(routing_statistics) X(route_backward) X(jitter_) \
  X(embedding_forward) X(embedding_backward) X(quantize_rows) X(quantize_columns) X(quantize_weight) \
  X(fp8_product) X(copy) X(add) X(take) X(to_host)
// clang-format on

extern const Kernels reference_kernels;
const Kernels& cpu_kernels();

// From now on the entries choose `kernels` for tensors of this type of device; null: as at first, the CPU's own or the
// reference. Not while other threads compute there.
void use_kernels(at::DeviceType device, const Kernels* kernels);

// Of a type of device, and of a tensor: the reference for dtypes that no other table covers.
const Kernels& kernels_of(at::DeviceType device);
const Kernels& kernels_of(const at::Tensor& tensor);

}  // namespace conclave
