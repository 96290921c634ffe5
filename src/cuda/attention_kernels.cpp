#include "cuda/attention_kernels.h"

#include <ATen/ATen.h>

#include "base/cuda_rules.h"
#include "cuda/flash_attention.h"
#include "cuda/tensor_pointers.h"

namespace conclave::cuda {
namespace {

// A matrix whose rows lie any distance apart.
Matrix matrix_of(const at::Tensor& rows) {
  return {rows.data_ptr(), rows.stride(0)};
}

NormShape shape_of(const at::Tensor& x_TH, const at::Tensor& weight_H) {
  return {.tokens = x_TH.size(0), .heads = x_TH.size(1) / weight_H.numel(), .hidden = weight_H.numel()};
}

void rms_norm_forward(at::Tensor y_TH, at::Tensor rstd_T, const at::Tensor& x_TH, const at::Tensor& weight_H,
                      double eps) {
  cuda::rms_norm_forward(current_stream(), element_of(x_TH), matrix_of(y_TH), data<float>(rstd_T), matrix_of(x_TH),
                         weight_H.data_ptr(), shape_of(x_TH, weight_H), eps);
}

void rms_norm_repeat(at::Tensor y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H) {
  cuda::rms_norm_repeat(current_stream(), element_of(x_TH), matrix_of(y_TH), matrix_of(x_TH), data<float>(rstd_T),
                        weight_H.data_ptr(), shape_of(x_TH, weight_H));
}

at::Tensor room_for_partial_sums(int64_t rows, const at::Tensor& sum_N) {
  return at::empty({norm_blocks(rows), sum_N.numel()}, sum_N.options());
}

void rms_norm_backward(at::Tensor grad_x_TH, at::Tensor grad_weight_H, const at::Tensor& grad_y_TH,
                       const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor& weight_H, bool add) {
  const at::Tensor partial = room_for_partial_sums(rstd_T.numel(), grad_weight_H);
  cuda::rms_norm_backward(current_stream(), element_of(x_TH), matrix_of(grad_x_TH), data<float>(grad_weight_H),
                          data<float>(partial), matrix_of(grad_y_TH), matrix_of(x_TH), data<float>(rstd_T),
                          weight_H.data_ptr(), shape_of(x_TH, weight_H), add);
}

void rotary_(at::Tensor rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table, bool inverse) {
  const RotaryShape shape{.rows = rows_TN.size(0),
                          .heads = heads,
                          .head_dim = head_dim,
                          .sequence = table.cos_SD.size(0),
                          .half = table.cos_SD.size(1),
                          .interleaved = table.interleaved};
  cuda::rotary(current_stream(), element_of(rows_TN), matrix_of(rows_TN), data<float>(table.cos_SD),
               data<float>(table.sin_SD), data_or_null<int32_t>(table.position_T), shape, inverse);
}

SinkShape shape_of_heads(const at::Tensor& out_TN, const at::Tensor& logsumexp_BNS) {
  return {.rows = out_TN.size(0),
          .heads = logsumexp_BNS.size(1),
          .sequence = logsumexp_BNS.size(2),
          .head_dim = out_TN.size(1) / logsumexp_BNS.size(1)};
}

void sink_forward_(at::Tensor out_TN, at::Tensor logsumexp_BNS, const at::Tensor& sink_N) {
  cuda::sink_forward(current_stream(), element_of(out_TN), out_TN.data_ptr(), data<float>(logsumexp_BNS),
                     sink_N.data_ptr(), shape_of_heads(out_TN, logsumexp_BNS));
}

void sink_backward(at::Tensor grad_sink_N, const at::Tensor& grad_out_TN, const at::Tensor& out_TN,
                   const at::Tensor& logsumexp_BNS, const at::Tensor& sink_N) {
  const at::Tensor partial = room_for_partial_sums(out_TN.size(0), grad_sink_N);
  cuda::sink_backward(current_stream(), element_of(out_TN), data<float>(grad_sink_N), data<float>(partial),
                      grad_out_TN.data_ptr(), out_TN.data_ptr(), data<float>(logsumexp_BNS), sink_N.data_ptr(),
                      shape_of_heads(out_TN, logsumexp_BNS));
}

LatentShape shape_of(const LatentHeads& heads) {
  return {.heads = heads.count, .plain = heads.plain_dim, .rotary = heads.rotary_dim, .value = heads.value_dim};
}

void expand_latent(at::Tensor qkv_TM, const at::Tensor& kv_TX, const at::Tensor& rotary_TR, const LatentHeads& heads) {
  cuda::expand_latent(current_stream(), element_of(qkv_TM), matrix_of(qkv_TM), matrix_of(kv_TX), matrix_of(rotary_TR),
                      qkv_TM.size(0), shape_of(heads));
}

void collect_latent(at::Tensor grad_kv_TX, at::Tensor grad_rotary_TR, const at::Tensor& grad_qkv_TM,
                    const LatentHeads& heads) {
  cuda::collect_latent(current_stream(), element_of(grad_qkv_TM), matrix_of(grad_kv_TX), matrix_of(grad_rotary_TR),
                       matrix_of(grad_qkv_TM), grad_qkv_TM.size(0), shape_of(heads));
}

}  // namespace

void use_attention_kernels(Kernels& table) {
  table.rms_norm_forward = rms_norm_forward;
  table.rms_norm_repeat = rms_norm_repeat;
  table.rms_norm_backward = rms_norm_backward;
  table.rotary_ = rotary_;
  table.sink_forward_ = sink_forward_;
  table.sink_backward = sink_backward;
  table.expand_latent = expand_latent;
  table.collect_latent = collect_latent;
  table.attention_forward = attention_forward;
  table.attention_backward = attention_backward;
}

}  // namespace conclave::cuda
