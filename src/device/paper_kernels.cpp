// The kernels of a step on paper: each allocates what the kernel it stands for returns and uses beside its arguments,
// and says what it costs: products their operations, everything else the bytes that it reads and writes.
#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "device/paper_attention.h"
#include "device/paper_costs.h"
#include "device/paper_experts.h"

namespace conclave::paper {
namespace {

double operations(int64_t rows, int64_t columns, int64_t terms) {
  return 2.0 * static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(terms);
}

void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor&, bool) {
  paper_device().clock().multiply(operations(out.size(0), out.size(1), a.size(1)), a.scalar_type());
}

void weight_gradient(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor&, bool) {
  paper_device().clock().multiply(operations(grad_w_NM.size(0), grad_w_NM.size(1), grad_y_RN.size(0)),
                                  grad_y_RN.scalar_type());
}

at::Tensor grouped_product(const at::Tensor& row_RM, const at::Tensor& matrix_LMN, const at::Tensor&) {
  paper_device().clock().multiply(operations(row_RM.size(0), matrix_LMN.size(2), row_RM.size(1)), row_RM.scalar_type());
  return room({row_RM.size(0), matrix_LMN.size(2)}, row_RM.scalar_type());
}

RotaryTable rotary_table(int64_t sequence_length, const RotaryOptions& options, at::Device) {
  const int64_t half = options.dims / 2;
  return {room({sequence_length, half}, at::kFloat), room({sequence_length, half}, at::kFloat), options.interleaved};
}

void rotary_(at::Tensor rows_TN, int64_t heads, int64_t, const RotaryTable& table, bool) {
  const int64_t width = heads * table.dims();
  paper_device().clock().pass(2.0 * static_cast<double>(rows_TN.size(0) * width) * rows_TN.element_size());
}

void rms_norm_forward(at::Tensor y_TH, at::Tensor rstd_T, const at::Tensor& x_TH, const at::Tensor&, double) {
  pass({y_TH, rstd_T, x_TH});
}

void rms_norm_repeat(at::Tensor y_TH, const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor&) {
  pass({y_TH, rstd_T, x_TH});
}

// A sum of the weight's gradient for each block of rows; on a GPU a head's rows are rows of their own.
void rms_norm_backward(at::Tensor grad_x_TH, at::Tensor grad_weight_H, const at::Tensor& grad_y_TH,
                       const at::Tensor& x_TH, const at::Tensor& rstd_T, const at::Tensor&, bool add) {
  const at::Tensor partial = room_for_partial_sums(on_gpu() ? rstd_T.numel() : x_TH.size(0), grad_weight_H);
  pass({grad_x_TH, add ? grad_x_TH : at::Tensor(), grad_y_TH, x_TH, rstd_T});
}

at::Tensor sum_of_losses(const at::Tensor& logits_CV) {
  return on_gpu() ? room({logits_CV.size(0) + 1}, at::kDouble)[logits_CV.size(0)] : room({}, at::kDouble);
}

at::Tensor cross_entropy(const at::Tensor& logits_CV, const at::Tensor&) {
  pass({logits_CV});
  return sum_of_losses(logits_CV);
}

at::Tensor cross_entropy_with_gradient_(at::Tensor logits_CV, const at::Tensor&, double) {
  pass({logits_CV, logits_CV, logits_CV});  // read twice, written once
  return sum_of_losses(logits_CV);
}

void adamw_step(at::Tensor parameter, at::Tensor exp_avg, at::Tensor exp_avg_sq, const at::Tensor& grad,
                const AdamwStep&) {
  paper_device().clock().optimize(bytes_of({parameter, parameter, exp_avg, exp_avg, exp_avg_sq, exp_avg_sq, grad}));
}

at::Tensor sum_of_squares(const at::Tensor& x) {
  paper_device().clock().optimize(bytes_of({x}));
  return room({}, at::kDouble);
}

void gather_rows(at::Tensor out_RH, const at::Tensor&, const at::Tensor& index_R) {
  pass({out_RH, out_RH, index_R});
}

void pack_rows(at::Tensor messages_RM, const at::Tensor&, const at::Tensor& row_index_R, const at::Tensor&,
               const at::Tensor& weight_index_R) {
  pass({messages_RM, messages_RM, row_index_R, weight_index_R});
}

void unpack_rows(at::Tensor rows_RH, at::Tensor weight_R, const at::Tensor& messages_NM, const at::Tensor& index_R) {
  pass({rows_RH, weight_R, messages_NM, index_R});
}

void combine_rows(at::Tensor out_TH, const at::Tensor& residual_TH, const at::Tensor& rows_RH,
                  const at::Tensor& row_of_choice_TK) {
  pass({out_TH, residual_TH, rows_RH, row_of_choice_TK});
}

void combine_messages(at::Tensor out_TH, at::Tensor weight_TK, const at::Tensor& messages_RM,
                      const at::Tensor& row_of_choice_TK) {
  pass({out_TH, weight_TK, messages_RM, row_of_choice_TK});
}

// The counts are known beforehand; on a GPU there is room for all choices. Of a part of the tokens the assumed rows may
// be a few more than its choices, because each expert's share is rounded.
ExpertOrder order_by_expert(const at::Tensor& expert_of_choice_TK, int64_t experts, const at::Tensor& assumed_count_E) {
  check_invariant(assumed_count_E.defined() && assumed_count_E.numel() == experts,
                  "on paper nobody has said how many rows {} experts have", experts);
  const int64_t choices = expert_of_choice_TK.numel();
  const auto rows = assumed_count_E.sum().item<int64_t>();
  pass({expert_of_choice_TK, expert_of_choice_TK});
  return {room({on_gpu() ? std::max(choices, rows) : rows}, at::kInt).narrow(0, 0, rows),
          room(expert_of_choice_TK.sizes(), at::kInt), assumed_count_E};
}

ArrivalOrder order_arrivals(const std::vector<int64_t>& received, int64_t, at::Device) {
  const int64_t rows = std::accumulate(received.begin(), received.end(), int64_t{0});
  return {room({rows}, at::kInt), room({rows}, at::kInt)};
}

Routing routed(const at::Tensor& logits_TE, const RouterOptions& options, at::Tensor expert_of_choice_TK) {
  const int64_t tokens = logits_TE.size(0);
  Routing routing{room(logits_TE.sizes(), at::kFloat), room({tokens}, at::kFloat), std::move(expert_of_choice_TK),
                  room({tokens, options.top_k}, at::kFloat)};
  pass({logits_TE, routing.score_TE});
  return routing;
}

Routing route(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor&) {
  const at::Tensor in_fp32 = on_gpu() ? logits_TE : logits_TE.to(at::kFloat);
  return routed(in_fp32, options, room({logits_TE.size(0), options.top_k}, at::kInt));
}

Routing route_to(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& expert_of_choice_TK) {
  const at::Tensor in_fp32 = on_gpu() ? logits_TE : logits_TE.to(at::kFloat);
  return routed(in_fp32, options, expert_of_choice_TK);
}

at::Tensor shares_of(const at::Tensor& wanted_TE, int64_t top_k) {
  const at::Tensor scattered = at::empty_like(wanted_TE);
  const at::Tensor of_choices = room({6, wanted_TE.size(0), top_k}, at::kDouble);
  pass({wanted_TE, wanted_TE, wanted_TE, of_choices, of_choices});
  return at::empty_like(wanted_TE);
}

RoutingStatistics routing_statistics(const Routing& routing, const RouterOptions&) {
  const int64_t experts = routing.score_TE.size(1), tokens = routing.score_TE.size(0);
  const at::Tensor partial = room({(tokens + 511) / 512, experts + 2}, at::kDouble);
  pass({routing.score_TE, routing.logsumexp_T, routing.expert_of_choice_TK});
  return {room({experts}, at::kDouble), room({experts}, at::kDouble), room({}, at::kDouble), room({}, at::kDouble)};
}

void route_backward(at::Tensor grad_logits_TE, const Routing& routing, const RouterOptions&,
                    const at::Tensor& grad_weight_TK, const at::Tensor&, double) {
  const bool widens = !on_gpu() && grad_logits_TE.scalar_type() != at::kFloat;
  const at::Tensor in_fp32 = widens ? room(grad_logits_TE.sizes(), at::kFloat) : at::Tensor();
  pass({grad_logits_TE, routing.score_TE, grad_weight_TK});
}

// Noise is drawn by the host.
void jitter_(at::Tensor rows_TH, const Jitter& jitter) {
  const at::Tensor drawn = on_gpu() ? at::Tensor() : room(rows_TH.sizes(), at::kFloat);
  const bool moves = on_gpu() || rows_TH.scalar_type() != at::kFloat;
  const at::Tensor noise = moves ? at::empty_like(rows_TH) : at::Tensor();
  pass({rows_TH, rows_TH, rows_TH});
}

void embedding_forward(at::Tensor out_TH, const at::Tensor&, const at::Tensor& tokens_T) {
  pass({out_TH, out_TH, tokens_T});
}

void embedding_backward(at::Tensor, const at::Tensor& grad_out_TH, const at::Tensor& tokens_T) {
  if (on_gpu()) {
    const at::Tensor sorted = at::empty_like(tokens_T), order = at::empty_like(tokens_T);
  }
  pass({grad_out_TH, grad_out_TH, grad_out_TH, tokens_T});
}

int64_t blocks_of(int64_t count) {
  return (count + fp8_block - 1) / fp8_block;
}

int64_t up_to_multiple(int64_t count, int64_t of) {
  return (count + of - 1) / of * of;
}

Fp8Matrix quantized(const at::Tensor& from, Fp8Matrix to) {
  pass({from, to.value_XS, to.scale});
  return to;
}

Fp8Matrix quantize_rows(const at::Tensor& x_RM, at::ScalarType format) {
  const int64_t padded = up_to_multiple(x_RM.size(0), 16), columns = x_RM.size(1);
  return quantized(x_RM,
                   {room({padded, columns}, format), room({blocks_of(columns), padded}, at::kFloat), Fp8Blocks::rows});
}

Fp8Matrix quantize_columns(const at::Tensor& x_RM, at::ScalarType format) {
  const int64_t padded = up_to_multiple(x_RM.size(0), fp8_block), columns = x_RM.size(1);
  return quantized(
      x_RM, {room({columns, padded}, format), room({blocks_of(x_RM.size(0)), columns}, at::kFloat), Fp8Blocks::rows});
}

Fp8Matrix quantize_weight(const at::Tensor& w_NM, bool transposed) {
  const int64_t x = w_NM.size(transposed ? 1 : 0), s = w_NM.size(transposed ? 0 : 1);
  return quantized(w_NM, {room({x, s}, at::kFloat8_e4m3fn),
                          room({blocks_of(x), up_to_multiple(blocks_of(s), 4)}, at::kFloat), Fp8Blocks::squares});
}

// An expert's rows are seldom a multiple of 16, and then the product comes to lie beside its place first.
void fp8_product(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate) {
  const bool of_rows = !accumulate && out_XY.scalar_type() != at::kFloat;
  const at::Tensor beside = of_rows ? room({a.value_XS.size(0), out_XY.size(1)}, out_XY.scalar_type()) : at::Tensor();
  paper_device().clock().multiply(operations(out_XY.size(0), out_XY.size(1), b.value_XS.size(1)),
                                  b.value_XS.scalar_type());
}

void copy(const at::Tensor& to, const at::Tensor& from) {
  pass({to, from});
}

// A CPU widens what it adds first.
void add(const at::Tensor& to, const at::Tensor& from) {
  const bool widens = !on_gpu() && to.scalar_type() != from.scalar_type();
  const at::Tensor widened = widens ? at::empty_like(to) : at::Tensor();
  pass({to, to, from});
}

at::Tensor take(const at::Tensor& values, const at::Tensor& index_R) {
  at::Tensor taken = room(index_R.sizes(), values.scalar_type());
  pass({taken, taken, index_R});
  return taken;
}

at::Tensor to_host(const at::Tensor& tensor, const at::Tensor& assumed) {
  if (assumed.defined()) return assumed;
  return at::ones(tensor.sizes(), tensor.options().device(at::kCPU));
}

void overlapping(int64_t count, const std::function<void(int64_t)>& f) {
  for (int64_t i = 0; i < count; ++i) f(i);
}

}  // namespace

#define CONCLAVE_ON_PAPER(op) .op = paper::op,
constinit const Kernels kernel_table{CONCLAVE_FOR_EACH_KERNEL(CONCLAVE_ON_PAPER)};
#undef CONCLAVE_ON_PAPER

}  // namespace conclave::paper
