#include "moe/all_to_all_dispatcher.h"

#include "base/error.h"
#include "kernels/permute.h"
#include "memory/memory_category.h"
#include "moe/local_dispatcher.h"

namespace conclave {
namespace {

// Received rows lie by (source rank, expert); experts want (expert, source rank). received[p * L + l]: rows of expert l
// from rank p.
void order_arrivals(DispatchPlan& plan, const int64_t* received, int ranks, int64_t local, at::Device device) {
  const int64_t rows = plan.received_rows();
  std::vector<int64_t> arrival_begin(static_cast<size_t>(ranks * local));
  for (int64_t i = 0, sum = 0; i < ranks * local; ++i) {
    arrival_begin[i] = sum;
    sum += received[i];
  }
  at::Tensor arrival_of_row = at::empty({rows}, at::kInt);
  at::Tensor row_of_arrival = at::empty({rows}, at::kInt);
  auto* arrival = arrival_of_row.data_ptr<int32_t>();
  auto* row = row_of_arrival.data_ptr<int32_t>();
  plan.rows_per_expert.assign(local, 0);
  int32_t next = 0;
  for (int64_t expert = 0; expert < local; ++expert) {
    for (int rank = 0; rank < ranks; ++rank) {
      const int64_t count = received[rank * local + expert];
      const int64_t begin = arrival_begin[rank * local + expert];
      plan.rows_per_expert[expert] += count;
      for (int64_t i = 0; i < count; ++i, ++next) {
        arrival[next] = static_cast<int32_t>(begin + i);
        row[begin + i] = next;
      }
    }
  }
  plan.arrival_of_row_R = arrival_of_row.to(device);
  plan.row_of_arrival_R = row_of_arrival.to(device);
}

}  // namespace

DispatchPlan AllToAllDispatcher::plan(const at::Tensor& expert_of_choice_TK) {
  const int ranks = expert_.size();
  const int64_t local = experts_ / ranks;
  SendOrder order = make_send_order(expert_of_choice_TK, experts_, ranks);
  DispatchPlan plan = std::move(order.plan);

  const at::Device device = expert_of_choice_TK.device();
  const std::vector<int64_t> splits(static_cast<size_t>(ranks), local);
  at::Tensor sent = order.count_E.to(device);
  at::Tensor received = at::empty_like(sent);
  all_to_all(received, sent, splits, splits);
  received = received.to(at::kCPU);

  const int64_t* count = received.const_data_ptr<int64_t>();
  for (int rank = 0; rank < ranks; ++rank)
    plan.received_per_rank.push_back(std::accumulate(count + rank * local, count + (rank + 1) * local, int64_t{0}));
  order_arrivals(plan, count, ranks, local, device);
  return plan;
}

void AllToAllDispatcher::all_to_all(const at::Tensor& output, const at::Tensor& input,
                                    const std::vector<int64_t>& output_splits,
                                    const std::vector<int64_t>& input_splits) {
  const ClockScope scope(clock_, Phase::dispatch);
  const StepClock::Time start = std::chrono::steady_clock::now();
  expert_.all_to_all(output, input, output_splits, input_splits).wait();
  clock_.add_in_flight(Phase::dispatch, start);
}

at::Tensor AllToAllDispatcher::exchange(const DispatchPlan& plan, Direction direction, at::Tensor rows) {
  const auto& out_splits = direction == Direction::to_experts ? plan.received_per_rank : plan.sent_per_rank;
  const auto& in_splits = direction == Direction::to_experts ? plan.sent_per_rank : plan.received_per_rank;
  const int64_t arriving = direction == Direction::to_experts ? plan.received_rows() : plan.sent_rows();
  at::Tensor arrived = at::empty({arriving, rows.size(1)}, rows.options());
  all_to_all(arrived, rows, out_splits, in_splits);
  return arrived;
}

ExpertRows AllToAllDispatcher::dispatch(const DispatchPlan& plan, const at::Tensor& token_TH,
                                        const at::Tensor& weight_TK) {
  MemoryScope scope(MemoryCategory::dispatch);
  const int64_t hidden = token_TH.size(1);
  at::Tensor messages =
      at::empty({plan.sent_rows(), message_bytes(hidden, token_TH.scalar_type())}, token_TH.options().dtype(at::kByte));
  pack_rows(messages, token_TH, plan.token_of_row_R, weight_TK, plan.choice_of_row_R);
  messages = exchange(plan, Direction::to_experts, std::move(messages));
  ExpertRows rows{at::empty({plan.received_rows(), hidden}, token_TH.options()),
                  at::empty({plan.received_rows()}, token_TH.options().dtype(at::kFloat))};
  unpack_rows(rows.row_RH, rows.weight_R, messages, plan.arrival_of_row_R);
  return rows;
}

at::Tensor AllToAllDispatcher::combine(const DispatchPlan& plan, const at::Tensor& residual_TH, at::Tensor row_RH) {
  at::Tensor out = at::empty_like(residual_TH);
  MemoryScope scope(MemoryCategory::dispatch);
  at::Tensor rows = at::empty_like(row_RH);
  gather_rows(rows, row_RH, plan.row_of_arrival_R);
  row_RH.reset();
  rows = exchange(plan, Direction::from_experts, std::move(rows));
  combine_rows(out, residual_TH, rows, plan.row_of_choice_TK);
  return out;
}

at::Tensor AllToAllDispatcher::combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) {
  MemoryScope scope(MemoryCategory::dispatch);
  at::Tensor rows = at::empty({plan.sent_rows(), grad_TH.size(1)}, grad_TH.options());
  gather_rows(rows, grad_TH, plan.token_of_row_R);
  rows = exchange(plan, Direction::to_experts, std::move(rows));
  at::Tensor ordered = at::empty_like(rows);
  gather_rows(ordered, rows, plan.arrival_of_row_R);
  return ordered;
}

DispatchGradient AllToAllDispatcher::dispatch_backward(const DispatchPlan& plan, ExpertRows grad) {
  const int64_t hidden = grad.row_RH.size(1);
  const auto row_options = grad.row_RH.options(), weight_options = grad.weight_R.options();
  MemoryScope scope(MemoryCategory::dispatch);
  at::Tensor messages = at::empty({plan.received_rows(), message_bytes(hidden, grad.row_RH.scalar_type())},
                                  grad.row_RH.options().dtype(at::kByte));
  pack_rows(messages, grad.row_RH, plan.row_of_arrival_R, grad.weight_R, plan.row_of_arrival_R);
  grad = {};
  messages = exchange(plan, Direction::from_experts, std::move(messages));
  DispatchGradient result{at::empty({plan.tokens, hidden}, row_options),
                          at::empty(plan.row_of_choice_TK.sizes(), weight_options)};
  combine_messages(result.token_TH, result.weight_TK, messages, plan.row_of_choice_TK);
  return result;
}

}  // namespace conclave
