#include <ATen/ATen.h>

#include "kernels/check.h"
#include "kernels/permute.h"

namespace conclave::reference {

namespace {

int64_t row_bytes(const at::Tensor& rows_NH) {
  return rows_NH.size(1) * rows_NH.element_size();
}

// The bytes [first, first + bytes) of every message as elements of `dtype`.
at::Tensor field(const at::Tensor& messages_RM, int64_t first, int64_t bytes, at::ScalarType dtype) {
  return messages_RM.narrow(1, first, bytes).clone(at::MemoryFormat::Contiguous).view(dtype);  // the copy is aligned
}

// Sum over k, in order, of rows[row_of_choice[:, k]] in the wide dtype; -1 adds nothing.
at::Tensor sum_choices(const at::Tensor& rows_RH, const at::Tensor& row_of_choice_TK) {
  const at::Tensor rows = rows_RH.to(wide_dtype(rows_RH.scalar_type()));
  at::Tensor sum = at::zeros({row_of_choice_TK.size(0), rows.size(1)}, rows.options());
  if (rows.size(0) == 0) return sum;
  for (int64_t k = 0; k < row_of_choice_TK.size(1); ++k) {
    const at::Tensor row = row_of_choice_TK.select(1, k);
    const at::Tensor addend = rows.index_select(0, row.clamp_min(0));
    sum = at::where(row.lt(0).unsqueeze(1), sum, sum + addend);
  }
  return sum;
}

}  // namespace

void gather_rows(at::Tensor out_RH, const at::Tensor& rows_NH, const at::Tensor& index_R) {
  out_RH.copy_(rows_NH.index_select(0, index_R));
}

void pack_rows(at::Tensor messages_RM, const at::Tensor& rows_NH, const at::Tensor& row_index_R,
               const at::Tensor& weights, const at::Tensor& weight_index_R) {
  const int64_t bytes = row_bytes(rows_NH);
  const at::Tensor weight = weights.flatten().index_select(0, weight_index_R).unsqueeze(1);
  messages_RM.zero_();
  messages_RM.narrow(1, 0, bytes).copy_(rows_NH.index_select(0, row_index_R).view(at::kByte));
  messages_RM.narrow(1, bytes, sizeof(float)).copy_(weight.view(at::kByte));
}

void unpack_rows(at::Tensor rows_RH, at::Tensor weight_R, const at::Tensor& messages_NM, const at::Tensor& index_R) {
  const at::Tensor messages = messages_NM.index_select(0, index_R);
  const int64_t bytes = row_bytes(rows_RH);
  rows_RH.copy_(field(messages, 0, bytes, rows_RH.scalar_type()));
  weight_R.copy_(field(messages, bytes, sizeof(float), at::kFloat).squeeze(1));
}

void combine_rows(at::Tensor out_TH, const at::Tensor& residual_TH, const at::Tensor& rows_RH,
                  const at::Tensor& row_of_choice_TK) {
  const at::Tensor sum = sum_choices(rows_RH, row_of_choice_TK);
  out_TH.copy_(residual_TH.defined() ? residual_TH + sum : sum);
}

void combine_messages(at::Tensor out_TH, at::Tensor weight_TK, const at::Tensor& messages_RM,
                      const at::Tensor& row_of_choice_TK) {
  const int64_t bytes = row_bytes(out_TH);
  const at::Tensor rows_RH = field(messages_RM, 0, bytes, out_TH.scalar_type());
  const at::Tensor weight_R1 = field(messages_RM, bytes, sizeof(float), at::kFloat);
  for (int64_t k = 0; k < row_of_choice_TK.size(1); ++k) {
    weight_TK.narrow(1, k, 1).copy_(sum_choices(weight_R1, row_of_choice_TK.narrow(1, k, 1)));
  }
  out_TH.copy_(sum_choices(rows_RH, row_of_choice_TK));
}

ExpertOrder order_by_expert(const at::Tensor& expert_of_choice_TK, int64_t experts) {
  const at::Tensor expert = expert_of_choice_TK.flatten();
  const at::Tensor sorted = std::get<1>(at::sort(expert, /*stable=*/true, /*dim=*/0, /*descending=*/false));
  const auto dropped = expert.lt(0).sum().item<int64_t>();  // they come first
  const at::Tensor order = sorted.narrow(0, dropped, sorted.numel() - dropped);
  at::Tensor inverse = at::full_like(sorted, -1);
  inverse.scatter_(0, order, at::arange(order.numel(), order.options()));
  return {order.to(at::kInt), inverse.to(at::kInt).view(expert_of_choice_TK.sizes()),
          at::bincount(expert.index_select(0, order), /*weights=*/{}, experts).to(at::kCPU)};
}

ArrivalOrder order_arrivals(const std::vector<int64_t>& received, int64_t sources, at::Device device) {
  const auto slots = static_cast<int64_t>(received.size()) / sources;
  std::vector<int64_t> begin(received.size());
  std::exclusive_scan(received.begin(), received.end(), begin.begin(), int64_t{0});
  const int64_t rows = std::accumulate(received.begin(), received.end(), int64_t{0});
  at::Tensor arrival_of_row = at::empty({rows}, at::kInt), row_of_arrival = at::empty({rows}, at::kInt);
  auto* arrival = arrival_of_row.data_ptr<int32_t>();
  auto* row = row_of_arrival.data_ptr<int32_t>();
  int32_t next = 0;
  for (int64_t slot = 0; slot < slots; ++slot)
    for (int64_t source = 0; source < sources; ++source)
      for (int64_t i = 0; i < received[source * slots + slot]; ++i, ++next) {
        const int64_t place = begin[source * slots + slot] + i;
        arrival[next] = static_cast<int32_t>(place);
        row[place] = next;
      }
  // Not waited for: what is copied from ordinary memory has left it when the call returns.
  return {arrival_of_row.to(device, /*non_blocking=*/true), row_of_arrival.to(device, /*non_blocking=*/true)};
}

}  // namespace conclave::reference
