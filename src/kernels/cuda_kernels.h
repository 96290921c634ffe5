// The kernels of our own on CUDA. They live in the plug-in (src/cuda), which this library must not link: whoever loads
// the plug-in hands its table over, and the entries choose it for CUDA tensors in fp32 and bf16 as they choose the fast
// paths of the CPU. Arguments as in the public headers, already checked; every function works on the current stream of
// the tensors' device. order_by_expert waits for it, because the host needs the counts; nothing else does.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "kernels/adamw.h"
#include "kernels/fp8_quantize.h"
#include "kernels/permute.h"
#include "kernels/rotary.h"
#include "kernels/router.h"

namespace conclave {

struct CudaKernels {
  void (*swiglu_forward)(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R);
  void (*swiglu_backward)(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                          const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R);

  void (*rms_norm_forward)(at::Tensor y_TH, at::Tensor rstd_T, const at::Tensor& x_TH, const at::Tensor& weight_H,
                           double eps);
  void (*rms_norm_repeat)(at::Tensor y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T,
                          const at::Tensor& weight_H);
  void (*rms_norm_backward)(at::Tensor grad_x_TH, at::Tensor grad_weight_H, const at::Tensor& grad_y_TH,
                            const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H);

  void (*rotary_)(at::Tensor qkv_TN, int64_t heads, const RotaryTable& table, bool inverse);

  // One double, on the device.
  at::Tensor (*cross_entropy)(const at::Tensor& logits_CV, const at::Tensor& targets_C);
  at::Tensor (*cross_entropy_with_gradient_)(at::Tensor logits_CV, const at::Tensor& targets_C, double scale);

  void (*adamw_step)(at::Tensor parameter, at::Tensor exp_avg, at::Tensor exp_avg_sq, const at::Tensor& grad,
                     const AdamwStep& step);
  at::Tensor (*sum_of_squares)(const at::Tensor& x);  // one double, on the device

  void (*gather_rows)(at::Tensor out_RH, const at::Tensor& rows_NH, const at::Tensor& index_R);
  void (*pack_rows)(at::Tensor messages_RM, const at::Tensor& rows_NH, const at::Tensor& row_index_R,
                    const at::Tensor& weights, const at::Tensor& weight_index_R);
  void (*unpack_rows)(at::Tensor rows_RH, at::Tensor weight_R, const at::Tensor& messages_NM,
                      const at::Tensor& index_R);
  void (*combine_rows)(at::Tensor out_TH, const at::Tensor& residual_TH, const at::Tensor& rows_RH,
                       const at::Tensor& row_of_choice_TK);
  void (*combine_messages)(at::Tensor out_TH, at::Tensor weight_TK, const at::Tensor& messages_RM,
                           const at::Tensor& row_of_choice_TK);
  ExpertOrder (*order_by_expert)(const at::Tensor& expert_of_choice_TK, int64_t experts);

  Routing (*route)(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& selection_bias_E);
  Routing (*route_to)(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& expert_of_choice_TK);
  RoutingStatistics (*routing_statistics)(const Routing& routing, const RouterOptions& options);
  void (*route_backward)(at::Tensor grad_logits_TE, const Routing& routing, const RouterOptions& options,
                         const at::Tensor& grad_weight_TK, const at::Tensor& probability_gradient_E,
                         double z_coefficient);

  void (*embedding_forward)(at::Tensor out_TH, const at::Tensor& table_VH, const at::Tensor& tokens_T);
  void (*embedding_backward)(at::Tensor grad_table_VH, const at::Tensor& grad_out_TH, const at::Tensor& tokens_T);

  Fp8Matrix (*quantize_rows)(const at::Tensor& x_RM, at::ScalarType format);
  Fp8Matrix (*quantize_columns)(const at::Tensor& x_RM, at::ScalarType format);
  Fp8Matrix (*quantize_weight)(const at::Tensor& w_NM, bool transposed);
  // out has as many rows as `a` and begins at a multiple of 16 bytes.
  void (*fp8_product)(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate);
  // Of bf16 into fp32.
  void (*weight_gradient)(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM, bool accumulate);

  // f(0) to f(count - 1), which may overlap on the device: none of them writes what another one reads or writes, or
  // allocates. What comes before and after them does not overlap.
  void (*overlapping)(int64_t count, const std::function<void(int64_t)>& f);
};

// From now on the entries choose `kernels` for tensors of this type of device; null: no longer. Tests put kernels in
// the place of the CPU's: not while other threads compute there.
void use_cuda_kernels(const CudaKernels* kernels, at::DeviceType device = at::kCUDA);

// The kernels for tensors of a type of device, and for a tensor in one of their dtypes; null: there are none.
const CudaKernels* cuda_kernels(at::DeviceType device);
const CudaKernels* cuda_kernels(const at::Tensor& tensor);

// Whether also what no kernel of ours decides is done as on CUDA: on CUDA, and where tests put its kernels in the place
// of the CPU's.
bool computes_as_cuda(const at::Tensor& tensor);

}  // namespace conclave
