// From tensors to pointers and sizes, and scratch memory. Nothing here waits for the device but the one that must tell
// the host how many rows there are.
#include "cuda/kernel_table.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "cuda/attention_kernels.h"
#include "cuda/expert_calls.h"
#include "cuda/library_products.h"
#include "cuda/tensor_pointers.h"
#include "cuda/two_streams.h"

namespace conclave::cuda {
namespace {

int64_t row_bytes(const at::Tensor& rows) {
  return rows.size(1) * static_cast<int64_t>(rows.element_size());
}

Rows rows_of(const at::Tensor& rows) {
  return {data<char>(rows), row_bytes(rows), rows.size(0)};
}

void swiglu_forward(at::Tensor out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R) {
  cuda::swiglu_forward(current_stream(), element_of(out_RI), out_RI.data_ptr(), gate_up_RJ.data_ptr(),
                       data<float>(weight_R), out_RI.size(0), out_RI.size(1));
}

void swiglu_backward(at::Tensor grad_gate_up_RJ, at::Tensor activation_RI, at::Tensor grad_weight_R,
                     const at::Tensor& grad_out_RI, const at::Tensor& gate_up_RJ, const at::Tensor& weight_R) {
  cuda::swiglu_backward(current_stream(), element_of(grad_out_RI), grad_gate_up_RJ.data_ptr(), activation_RI.data_ptr(),
                        data<float>(grad_weight_R), grad_out_RI.data_ptr(), gate_up_RJ.data_ptr(),
                        data<float>(weight_R), grad_out_RI.size(0), grad_out_RI.size(1));
}

at::Tensor sum_losses(const at::Tensor& logits_CV, const at::Tensor& targets_C, bool gradient, double scale) {
  const int64_t tokens = logits_CV.size(0);
  const at::Tensor loss = at::empty({tokens + 1}, logits_CV.options().dtype(at::kDouble));  // the sum comes last
  cuda::cross_entropy(current_stream(), element_of(logits_CV), logits_CV.data_ptr(), data<double>(loss),
                      data<int64_t>(targets_C), tokens, logits_CV.size(1), gradient, scale);
  cuda::sum_of_doubles(current_stream(), data<double>(loss) + tokens, data<double>(loss), tokens);
  return loss[tokens];
}

at::Tensor cross_entropy(const at::Tensor& logits_CV, const at::Tensor& targets_C) {
  return sum_losses(logits_CV, targets_C, /*gradient=*/false, /*scale=*/0);
}

at::Tensor cross_entropy_with_gradient_(at::Tensor logits_CV, const at::Tensor& targets_C, double scale) {
  return sum_losses(logits_CV, targets_C, /*gradient=*/true, scale);
}

void adamw_step(at::Tensor parameter, at::Tensor exp_avg, at::Tensor exp_avg_sq, const at::Tensor& grad,
                const AdamwStep& step) {
  cuda::adamw(current_stream(), data<float>(parameter), data<float>(exp_avg), data<float>(exp_avg_sq),
              data<float>(grad), factors_of(step), parameter.numel());
}

at::Tensor sum_of_squares(const at::Tensor& x) {
  const int64_t blocks = sum_of_squares_blocks(x.numel());
  const at::Tensor partial = at::empty({blocks + 1}, x.options().dtype(at::kDouble));  // the sum comes last
  cuda::sum_of_squares(current_stream(), data<double>(partial), data<float>(x), x.numel());
  cuda::sum_of_doubles(current_stream(), data<double>(partial) + blocks, data<double>(partial), blocks);
  return partial[blocks];
}

void gather_rows(at::Tensor out_RH, const at::Tensor& rows_NH, const at::Tensor& index_R) {
  cuda::gather_rows(current_stream(), rows_of(out_RH), rows_of(rows_NH), row_bytes(rows_NH), data<int32_t>(index_R));
}

void pack_rows(at::Tensor messages_RM, const at::Tensor& rows_NH, const at::Tensor& row_index_R,
               const at::Tensor& weights, const at::Tensor& weight_index_R) {
  cuda::pack_rows(current_stream(), rows_of(messages_RM), rows_of(rows_NH), row_bytes(rows_NH),
                  data<int32_t>(row_index_R), data<float>(weights), weights.numel(), data<int32_t>(weight_index_R));
}

void unpack_rows(at::Tensor rows_RH, at::Tensor weight_R, const at::Tensor& messages_NM, const at::Tensor& index_R) {
  cuda::unpack_rows(current_stream(), rows_of(rows_RH), data<float>(weight_R), rows_of(messages_NM), row_bytes(rows_RH),
                    data<int32_t>(index_R));
}

void combine_rows(at::Tensor out_TH, const at::Tensor& residual_TH, const at::Tensor& rows_RH,
                  const at::Tensor& row_of_choice_TK) {
  cuda::combine(current_stream(), element_of(out_TH), out_TH.data_ptr(), /*weight=*/nullptr,
                data_or_null<void>(residual_TH), rows_of(rows_RH), data<int32_t>(row_of_choice_TK), out_TH.size(0),
                row_of_choice_TK.size(1), out_TH.size(1));
}

void combine_messages(at::Tensor out_TH, at::Tensor weight_TK, const at::Tensor& messages_RM,
                      const at::Tensor& row_of_choice_TK) {
  cuda::combine(current_stream(), element_of(out_TH), out_TH.data_ptr(), data<float>(weight_TK), /*residual=*/nullptr,
                rows_of(messages_RM), data<int32_t>(row_of_choice_TK), out_TH.size(0), row_of_choice_TK.size(1),
                out_TH.size(1));
}

// The rows are as many as the counts say: the host waits for these.
ExpertOrder order_by_expert(const at::Tensor& expert_of_choice_TK, int64_t experts,
                            const at::Tensor& /*assumed_count_E*/) {
  const int64_t choices = expert_of_choice_TK.numel();
  const auto int32 = expert_of_choice_TK.options();
  ExpertOrder order{at::empty({choices}, int32), at::empty_like(expert_of_choice_TK),
                    at::empty({experts}, int32.dtype(at::kLong))};
  const at::Tensor scratch = at::empty({expert_order_scratch(choices, experts)}, int32);
  cuda::order_by_expert(current_stream(), data<int32_t>(order.choice_of_row_R), data<int32_t>(order.row_of_choice_TK),
                        data<int64_t>(order.count_E), data<int32_t>(scratch), data<int32_t>(expert_of_choice_TK),
                        choices, experts);
  order.count_E = order.count_E.to(at::kCPU);
  order.choice_of_row_R = order.choice_of_row_R.narrow(0, 0, order.count_E.sum().item<int64_t>());
  return order;
}

RouterShape shape_of(const at::Tensor& score_TE, const RouterOptions& options) {
  check_invariant(score_TE.size(1) <= router_experts_limit(), "router: {} experts, at most {} on CUDA",
                  score_TE.size(1), router_experts_limit());
  return {.tokens = score_TE.size(0),
          .experts = score_TE.size(1),
          .top_k = options.top_k,
          .sigmoid = options.scores == RouterScores::sigmoid,
          .renormalize = options.renormalize,
          .scale = static_cast<float>(options.scale),
          .groups = options.groups,
          .top_groups = options.top_groups,
          .best_of_group = options.best_of_group};
}

Routing route_or_weigh(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& bias_E,
                       const at::Tensor& expert_of_choice_TK, bool choose) {
  const int64_t tokens = logits_TE.size(0), experts = logits_TE.size(1);
  const auto fp32 = logits_TE.options().dtype(at::kFloat);
  Routing routing{at::empty({tokens, experts}, fp32), at::empty({tokens}, fp32), expert_of_choice_TK,
                  at::empty({tokens, options.top_k}, fp32)};
  cuda::route(current_stream(), element_of(logits_TE), data<float>(routing.score_TE), data<float>(routing.logsumexp_T),
              data<int32_t>(expert_of_choice_TK), data<float>(routing.weight_TK), logits_TE.data_ptr(),
              data_or_null<float>(bias_E), shape_of(logits_TE, options), choose);
  return routing;
}

Routing route(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& selection_bias_E) {
  const at::Tensor expert = at::empty({logits_TE.size(0), options.top_k}, logits_TE.options().dtype(at::kInt));
  return route_or_weigh(logits_TE, options, selection_bias_E, expert, /*choose=*/true);
}

Routing route_to(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& expert_of_choice_TK) {
  return route_or_weigh(logits_TE, options, /*bias_E=*/{}, expert_of_choice_TK, /*choose=*/false);
}

RoutingStatistics routing_statistics(const Routing& routing, const RouterOptions& options) {
  const int64_t tokens = routing.score_TE.size(0), experts = routing.score_TE.size(1);
  const auto fp64 = routing.score_TE.options().dtype(at::kDouble);
  const at::Tensor statistics = at::empty({2 * experts + 2}, fp64);
  const at::Tensor partial = at::empty({routing_statistics_blocks(tokens), 2 * experts + 2}, fp64);
  cuda::routing_statistics(current_stream(), data<double>(statistics), data<double>(partial),
                           data<float>(routing.score_TE), data<float>(routing.logsumexp_T),
                           data<int32_t>(routing.expert_of_choice_TK), shape_of(routing.score_TE, options));
  return {statistics.narrow(0, 0, experts), statistics.narrow(0, experts, experts), statistics[2 * experts],
          statistics[2 * experts + 1]};
}

void route_backward(at::Tensor grad_logits_TE, const Routing& routing, const RouterOptions& options,
                    const at::Tensor& grad_weight_TK, const at::Tensor& probability_gradient_E, double z_coefficient) {
  cuda::route_backward(current_stream(), element_of(grad_logits_TE), grad_logits_TE.data_ptr(),
                       data<float>(routing.score_TE), data<float>(routing.logsumexp_T),
                       data<int32_t>(routing.expert_of_choice_TK), data<float>(routing.weight_TK),
                       data<float>(grad_weight_TK), data_or_null<float>(probability_gradient_E),
                       static_cast<float>(z_coefficient), shape_of(routing.score_TE, options));
}

void embedding_forward(at::Tensor out_TH, const at::Tensor& table_VH, const at::Tensor& tokens_T) {
  cuda::gather_rows(current_stream(), rows_of(out_TH), rows_of(table_VH), row_bytes(table_VH), data<int64_t>(tokens_T));
}

void embedding_backward(at::Tensor grad_table_VH, const at::Tensor& grad_out_TH, const at::Tensor& tokens_T) {
  const auto [sorted, order] = at::sort(tokens_T, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  cuda::embedding_backward(current_stream(), element_of(grad_out_TH), data<float>(grad_table_VH),
                           grad_out_TH.data_ptr(), data<int64_t>(sorted), data<int64_t>(order), tokens_T.numel(),
                           grad_table_VH.size(0), grad_table_VH.size(1));
}

Fp8Format format_of(at::ScalarType format) {
  return format == at::kFloat8_e4m3fn ? Fp8Format::e4m3 : Fp8Format::e5m2;
}

int64_t up_to_multiple(int64_t count, int64_t of) {
  return (count + of - 1) / of * of;
}

int64_t blocks_of(int64_t count) {
  return up_to_multiple(count, fp8_block) / fp8_block;
}

Fp8Matrix quantize_rows(const at::Tensor& x_RM, at::ScalarType format) {
  const int64_t rows = x_RM.size(0), columns = x_RM.size(1), padded = up_to_multiple(rows, 16);
  Fp8Matrix matrix{at::empty({padded, columns}, x_RM.options().dtype(format)),
                   at::empty({blocks_of(columns), padded}, x_RM.options().dtype(at::kFloat)), Fp8Blocks::rows};
  cuda::quantize_rows(current_stream(), element_of(x_RM), format_of(format), data<uint8_t>(matrix.value_XS),
                      data<float>(matrix.scale), x_RM.data_ptr(), rows, padded, columns);
  return matrix;
}

Fp8Matrix quantize_columns(const at::Tensor& x_RM, at::ScalarType format) {
  const int64_t rows = x_RM.size(0), columns = x_RM.size(1), padded = up_to_multiple(rows, fp8_block);
  Fp8Matrix matrix{at::empty({columns, padded}, x_RM.options().dtype(format)),
                   at::empty({blocks_of(rows), columns}, x_RM.options().dtype(at::kFloat)), Fp8Blocks::rows};
  cuda::quantize_columns(current_stream(), element_of(x_RM), format_of(format), data<uint8_t>(matrix.value_XS),
                         data<float>(matrix.scale), x_RM.data_ptr(), rows, padded, columns);
  return matrix;
}

Fp8Matrix quantize_weight(const at::Tensor& w_NM, bool transposed) {
  const int64_t rows = w_NM.size(0), columns = w_NM.size(1), x = transposed ? columns : rows,
                s = transposed ? rows : columns;
  Fp8Matrix matrix{at::empty({x, s}, w_NM.options().dtype(at::kFloat8_e4m3fn)),
                   at::ones({blocks_of(x), up_to_multiple(blocks_of(s), 4)}, w_NM.options().dtype(at::kFloat)),
                   Fp8Blocks::squares};
  cuda::quantize_weight(current_stream(), element_of(w_NM), data<uint8_t>(matrix.value_XS), data<float>(matrix.scale),
                        matrix.scale.size(1), w_NM.data_ptr(), rows, columns, transposed);
  return matrix;
}

// Where out lacks rows of a, or begins where a device does not write, the product comes to lie beside it first.
void fp8_product_into(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate) {
  const int64_t rows = a.value_XS.size(0);
  const bool aligned = reinterpret_cast<uintptr_t>(out_XY.data_ptr()) % 16 == 0;
  if (rows == out_XY.size(0) && aligned) return fp8_product(out_XY, a, b, accumulate);
  const at::Tensor beside_XY = at::empty({rows, out_XY.size(1)}, out_XY.options());
  fp8_product(beside_XY, a, b, /*accumulate=*/false);
  const at::Tensor product_XY = beside_XY.narrow(0, 0, out_XY.size(0));
  accumulate ? out_XY.add_(product_XY) : out_XY.copy_(product_XY);
}

Kernels make_table() {
  Kernels table = reference_kernels;
  table.swiglu_forward = swiglu_forward;
  table.swiglu_backward = swiglu_backward;
  add_expert_calls(table);
  table.cross_entropy = cross_entropy;
  table.cross_entropy_with_gradient_ = cross_entropy_with_gradient_;
  table.adamw_step = adamw_step;
  table.sum_of_squares = sum_of_squares;
  table.gather_rows = gather_rows;
  table.pack_rows = pack_rows;
  table.unpack_rows = unpack_rows;
  table.combine_rows = combine_rows;
  table.combine_messages = combine_messages;
  table.order_by_expert = order_by_expert;
  table.route = route;
  table.route_to = route_to;
  table.routing_statistics = routing_statistics;
  table.route_backward = route_backward;
  table.embedding_forward = embedding_forward;
  table.embedding_backward = embedding_backward;
  table.quantize_rows = quantize_rows;
  table.quantize_columns = quantize_columns;
  table.quantize_weight = quantize_weight;
  table.fp8_product = fp8_product_into;
  table.weight_gradient = weight_gradient;
  table.overlapping = on_two_streams;
  use_attention_kernels(table);
  return table;
}

}  // namespace

const Kernels kernel_table = make_table();

}  // namespace conclave::cuda
