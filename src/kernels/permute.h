// Moving rows: permute before experts, unpermute after them, and the packed form in which rows travel with their
// routing weight.
//
// A message is one row of the compute dtype on its way to another rank (kernels/row_message.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace conclave {

int64_t message_bytes(int64_t hidden, at::ScalarType dtype);

// out [R,H] = rows[index[r]], index [R] int32.
void gather_rows(at::Tensor out_RH, const at::Tensor& rows_NH, const at::Tensor& index_R);

// messages [R, message_bytes] uint8: row rows[row_index[r]] with weight weights[weight_index[r]] (weights: any shape,
// contiguous, fp32).
void pack_rows(at::Tensor messages_RM, const at::Tensor& rows_NH, const at::Tensor& row_index_R,
               const at::Tensor& weights, const at::Tensor& weight_index_R);

// rows [R,H] and weights [R] of messages[index[r]].
void unpack_rows(at::Tensor rows_RH, at::Tensor weight_R, const at::Tensor& messages_NM, const at::Tensor& index_R);

// out[t] = residual[t] + sum over k of rows[row_of_choice[t,k]]: the sum in fp32 in the order of k, then the residual,
// rounded once; -1 adds nothing. `residual` may be out itself, or undefined for none.
void combine_rows(at::Tensor out_TH, const at::Tensor& residual_TH, const at::Tensor& rows_RH,
                  const at::Tensor& row_of_choice_TK);

// The same over messages: out[t] = sum over k of the rows, weight[t,k] fp32 = the weight of that message (0 for -1).
void combine_messages(at::Tensor out_TH, at::Tensor weight_TK, const at::Tensor& messages_RM,
                      const at::Tensor& row_of_choice_TK);

// A stable counting sort of the T*K choices by expert, where -1 is no expert's: choice_of_row [R] int32 (t * K + k,
// ascending within an expert), row_of_choice [T,K] int32 its inverse (-1 for a choice without a row), count [E] int64.
// On the device of the choices, but count on the CPU: what is done with the rows next needs it there.
struct ExpertOrder {
  at::Tensor choice_of_row_R;
  at::Tensor row_of_choice_TK;
  at::Tensor count_E;
};
// `assumed_count_E`: what stands for the counts on paper, where nobody has chosen.
ExpertOrder order_by_expert(const at::Tensor& expert_of_choice_TK, int64_t experts,
                            const at::Tensor& assumed_count_E = {});

// Rows arrive by (source, slot); experts want (slot, source). received[source * slots + slot]: the rows of each. Both
// int32 [R] on `device`.
struct ArrivalOrder {
  at::Tensor arrival_of_row_R;  // in expert order: where the row lies among those that arrived
  at::Tensor row_of_arrival_R;  // its inverse
};
ArrivalOrder order_arrivals(const std::vector<int64_t>& received, int64_t sources, at::Device device);

namespace reference {
ArrivalOrder order_arrivals(const std::vector<int64_t>& received, int64_t sources, at::Device device);
void gather_rows(at::Tensor out_RH, const at::Tensor& rows_NH, const at::Tensor& index_R);
void pack_rows(at::Tensor messages_RM, const at::Tensor& rows_NH, const at::Tensor& row_index_R,
               const at::Tensor& weights, const at::Tensor& weight_index_R);
void unpack_rows(at::Tensor rows_RH, at::Tensor weight_R, const at::Tensor& messages_NM, const at::Tensor& index_R);
void combine_rows(at::Tensor out_TH, const at::Tensor& residual_TH, const at::Tensor& rows_RH,
                  const at::Tensor& row_of_choice_TK);
void combine_messages(at::Tensor out_TH, at::Tensor weight_TK, const at::Tensor& messages_RM,
                      const at::Tensor& row_of_choice_TK);
ExpertOrder order_by_expert(const at::Tensor& expert_of_choice_TK, int64_t experts);
}  // namespace reference

}  // namespace conclave
