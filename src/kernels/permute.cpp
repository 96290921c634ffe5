#include "kernels/permute.h"

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"
#include "kernels/row_message.h"

namespace conclave {

int64_t message_bytes(int64_t hidden, at::ScalarType dtype) {
  return row_message_bytes(hidden, static_cast<int64_t>(c10::elementSize(dtype)));
}

void gather_rows(at::Tensor out_RH, const at::Tensor& rows_NH, const at::Tensor& index_R) {
  const KernelScope timed(Phase::permute);
  constexpr auto op = "gather_rows";
  check_dims(op, "rows", rows_NH, 2);
  check_tensor(op, "index", index_R, {index_R.numel()}, at::kInt);
  check_tensor(op, "out", out_RH, {index_R.numel(), rows_NH.size(1)}, rows_NH.scalar_type());
  kernels_of(rows_NH).gather_rows(out_RH, rows_NH, index_R);
}

void pack_rows(at::Tensor messages_RM, const at::Tensor& rows_NH, const at::Tensor& row_index_R,
               const at::Tensor& weights, const at::Tensor& weight_index_R) {
  const KernelScope timed(Phase::permute);
  constexpr auto op = "pack_rows";
  const int64_t count = row_index_R.numel();
  check_dims(op, "rows", rows_NH, 2);
  check_tensor(op, "row_index", row_index_R, {count}, at::kInt);
  check_tensor(op, "weight_index", weight_index_R, {count}, at::kInt);
  check_tensor(op, "weights", weights, weights.sizes(), at::kFloat);
  check_tensor(op, "messages", messages_RM, {count, message_bytes(rows_NH.size(1), rows_NH.scalar_type())}, at::kByte);
  kernels_of(rows_NH).pack_rows(messages_RM, rows_NH, row_index_R, weights, weight_index_R);
}

void unpack_rows(at::Tensor rows_RH, at::Tensor weight_R, const at::Tensor& messages_NM, const at::Tensor& index_R) {
  const KernelScope timed(Phase::permute);
  constexpr auto op = "unpack_rows";
  const int64_t count = index_R.numel();
  check_dims(op, "rows", rows_RH, 2);
  check_tensor(op, "index", index_R, {count}, at::kInt);
  check_tensor(op, "rows", rows_RH, {count, rows_RH.size(1)}, rows_RH.scalar_type());
  check_tensor(op, "weight", weight_R, {count}, at::kFloat);
  check_tensor(op, "messages", messages_NM,
               {messages_NM.size(0), message_bytes(rows_RH.size(1), rows_RH.scalar_type())}, at::kByte);
  kernels_of(rows_RH).unpack_rows(rows_RH, weight_R, messages_NM, index_R);
}

void combine_rows(at::Tensor out_TH, const at::Tensor& residual_TH, const at::Tensor& rows_RH,
                  const at::Tensor& row_of_choice_TK) {
  const KernelScope timed(Phase::permute);
  constexpr auto op = "combine_rows";
  check_dims(op, "rows", rows_RH, 2);
  check_dims(op, "row_of_choice", row_of_choice_TK, 2);
  const int64_t tokens = row_of_choice_TK.size(0);
  check_tensor(op, "row_of_choice", row_of_choice_TK, row_of_choice_TK.sizes(), at::kInt);
  check_tensor(op, "out", out_TH, {tokens, rows_RH.size(1)}, rows_RH.scalar_type());
  if (residual_TH.defined()) check_tensor(op, "residual", residual_TH, out_TH.sizes(), rows_RH.scalar_type());
  kernels_of(out_TH).combine_rows(out_TH, residual_TH, rows_RH, row_of_choice_TK);
}

void combine_messages(at::Tensor out_TH, at::Tensor weight_TK, const at::Tensor& messages_RM,
                      const at::Tensor& row_of_choice_TK) {
  const KernelScope timed(Phase::permute);
  constexpr auto op = "combine_messages";
  check_dims(op, "out", out_TH, 2);
  check_dims(op, "row_of_choice", row_of_choice_TK, 2);
  check_tensor(op, "row_of_choice", row_of_choice_TK, {out_TH.size(0), row_of_choice_TK.size(1)}, at::kInt);
  check_tensor(op, "weight", weight_TK, row_of_choice_TK.sizes(), at::kFloat);
  check_tensor(op, "messages", messages_RM, {messages_RM.size(0), message_bytes(out_TH.size(1), out_TH.scalar_type())},
               at::kByte);
  kernels_of(out_TH).combine_messages(out_TH, weight_TK, messages_RM, row_of_choice_TK);
}

ExpertOrder order_by_expert(const at::Tensor& expert_of_choice_TK, int64_t experts, const at::Tensor& assumed_count_E) {
  const KernelScope timed(Phase::permute);
  constexpr auto op = "order_by_expert";
  check_dims(op, "expert_of_choice", expert_of_choice_TK, 2);
  check_tensor(op, "expert_of_choice", expert_of_choice_TK, expert_of_choice_TK.sizes(), at::kInt);
  return kernels_of(expert_of_choice_TK.device().type()).order_by_expert(expert_of_choice_TK, experts, assumed_count_E);
}

ArrivalOrder order_arrivals(const std::vector<int64_t>& received, int64_t sources, at::Device device) {
  const KernelScope timed(Phase::permute);
  return kernels_of(device.type()).order_arrivals(received, sources, device);
}

}  // namespace conclave
