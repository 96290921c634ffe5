#include "moe/all_to_all_dispatcher.h"

#include <ATen/ATen.h>

#include "kernels/permute.h"
#include "kernels/values.h"
#include "memory/memory_category.h"
#include "moe/send_order.h"

namespace conclave {
namespace {

// received[p * S + s]: rows of slot s, one of this rank's S, from rank p.
void receive(DispatchPlan& plan, const std::vector<int64_t>& received, int ranks, at::Device device) {
  const auto slots = static_cast<int64_t>(received.size()) / ranks;
  plan.received_per_rank.assign(ranks, 0);
  plan.rows_per_expert.assign(slots, 0);
  for (int rank = 0; rank < ranks; ++rank)
    for (int64_t slot = 0; slot < slots; ++slot) {
      plan.received_per_rank[rank] += received[rank * slots + slot];
      plan.rows_per_expert[slot] += received[rank * slots + slot];
    }
  ArrivalOrder order = order_arrivals(received, ranks, device);
  plan.arrival_of_row_R = std::move(order.arrival_of_row_R);
  plan.row_of_arrival_R = std::move(order.row_of_arrival_R);
}

}  // namespace

DispatchPlan AllToAllDispatcher::plan(const Choices& choices) {
  return spill_ ? plan_with_helpers(choices, *spill_) : plan_at_home(choices);
}

DispatchPlan AllToAllDispatcher::plan_at_home(const Choices& choices) {
  const int ranks = expert_.size();
  const int64_t local = experts_ / ranks;
  const std::vector<int64_t> splits(static_cast<size_t>(ranks), local);
  SendOrder order = make_send_order(choices.expert_TK, splits, choices.assumed_rows_of(expert_.rank()));
  DispatchPlan plan = std::move(order.plan);

  const at::Device device = choices.expert_TK.device();
  at::Tensor sent = order.count_S.to(device, /*non_blocking=*/true);
  at::Tensor received = at::empty_like(sent);
  received = RowsInFlight(received, sent, expert_.all_to_all(received, sent, splits, splits), clock_).take();
  received = to_host(received, choices.assumed_rows_by_source(expert_.rank() * local, local));
  const auto* count = received.const_data_ptr<int64_t>();
  receive(plan, {count, count + received.numel()}, ranks, device);
  return plan;
}

DispatchPlan AllToAllDispatcher::plan_with_helpers(const Choices& choices, const SpillOptions& options) {
  const int ranks = expert_.size();
  const at::Device device = choices.expert_TK.device();
  const at::Tensor own =
      order_by_expert(choices.expert_TK.contiguous(), experts_, choices.assumed_rows_of(expert_.rank()))
          .count_E.to(device, /*non_blocking=*/true);
  at::Tensor all = at::empty({ranks, experts_}, own.options());
  all = RowsInFlight(all, own, expert_.all_gather(all, own), clock_).take();
  all = to_host(all, choices.assumed_rows_by_source(0, experts_));

  const auto* count = all.const_data_ptr<int64_t>();
  std::vector<std::vector<int64_t>> by_source;
  std::vector<int64_t> total(static_cast<size_t>(experts_)), before(static_cast<size_t>(experts_));
  for (int source = 0; source < ranks; ++source) {
    by_source.emplace_back(count + source * experts_, count + (source + 1) * experts_);
    if (source == expert_.rank()) before = total;
    for (int64_t expert = 0; expert < experts_; ++expert) total[expert] += by_source.back()[expert];
  }
  const auto spill = std::make_shared<const SpillPlan>(plan_spill(total, ranks, options));

  std::vector<int64_t> slots_per_rank;
  slots_per_rank.reserve(static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank)
    slots_per_rank.push_back(spill->experts_per_rank + static_cast<int64_t>(spill->guests_of(rank).size()));
  DispatchPlan plan =
      choices.assumed
          ? make_send_order(at::empty_like(choices.expert_TK), slots_per_rank,
                            rows_to_slots(by_source, *spill, expert_.rank()))
                .plan
          : make_send_order(slots_of_choices(choices.expert_TK, *spill, before, ranks), slots_per_rank).plan;
  receive(plan, rows_of_slots(by_source, *spill, expert_.rank()), ranks, device);
  if (spill->lends()) plan.spill = spill;
  return plan;
}

std::shared_ptr<RowsInFlight> AllToAllDispatcher::exchange(const DispatchPlan& plan, Direction direction,
                                                           at::Tensor rows) {
  const auto& out_splits = direction == Direction::to_experts ? plan.received_per_rank : plan.sent_per_rank;
  const auto& in_splits = direction == Direction::to_experts ? plan.sent_per_rank : plan.received_per_rank;
  const int64_t arriving = direction == Direction::to_experts ? plan.received_rows() : plan.sent_rows();
  at::Tensor arrived = at::empty({arriving, rows.size(1)}, rows.options());
  Pending pending = expert_.all_to_all(arrived, rows, out_splits, in_splits);
  return std::make_shared<RowsInFlight>(std::move(arrived), std::move(rows), std::move(pending), clock_);
}

Arriving<ExpertRows()> AllToAllDispatcher::begin_dispatch(const DispatchPlan& plan, const at::Tensor& token_TH,
                                                          const at::Tensor& weight_TK) {
  MemoryScope scope(MemoryCategory::dispatch);
  const int64_t hidden = token_TH.size(1);
  at::Tensor messages =
      at::empty({plan.sent_rows(), message_bytes(hidden, token_TH.scalar_type())}, token_TH.options().dtype(at::kByte));
  pack_rows(messages, token_TH, plan.token_of_row_R, weight_TK, plan.choice_of_row_R);
  const auto in_flight = exchange(plan, Direction::to_experts, std::move(messages));
  return Arriving<ExpertRows()>([&plan, in_flight, hidden, options = token_TH.options()] {
    const at::Tensor arrived = in_flight->take();
    MemoryScope scope(MemoryCategory::dispatch);
    ExpertRows rows{at::empty({plan.received_rows(), hidden}, options),
                    at::empty({plan.received_rows()}, options.dtype(at::kFloat))};
    unpack_rows(rows.row_RH, rows.weight_R, arrived, plan.arrival_of_row_R);
    return rows;
  });
}

Dispatcher::Combined AllToAllDispatcher::begin_combine(const DispatchPlan& plan, at::Tensor row_RH) {
  MemoryScope scope(MemoryCategory::dispatch);
  at::Tensor rows = at::empty_like(row_RH);
  gather_rows(rows, row_RH, plan.row_of_arrival_R);
  row_RH.reset();
  const auto in_flight = exchange(plan, Direction::from_experts, std::move(rows));
  return Combined([&plan, in_flight](at::Tensor out_TH, const at::Tensor& residual_TH) {
    combine_rows(out_TH, residual_TH, in_flight->take(), plan.row_of_choice_TK);
  });
}

Arriving<at::Tensor()> AllToAllDispatcher::begin_combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) {
  MemoryScope scope(MemoryCategory::dispatch);
  at::Tensor rows = at::empty({plan.sent_rows(), grad_TH.size(1)}, grad_TH.options());
  gather_rows(rows, grad_TH, plan.token_of_row_R);
  const auto in_flight = exchange(plan, Direction::to_experts, std::move(rows));
  return Arriving<at::Tensor()>([&plan, in_flight] {
    const at::Tensor arrived = in_flight->take();
    MemoryScope scope(MemoryCategory::dispatch);
    at::Tensor ordered = at::empty_like(arrived);
    gather_rows(ordered, arrived, plan.arrival_of_row_R);
    return ordered;
  });
}

Dispatcher::DispatchedBack AllToAllDispatcher::begin_dispatch_backward(const DispatchPlan& plan, ExpertRows grad) {
  MemoryScope scope(MemoryCategory::dispatch);
  at::Tensor messages = at::empty({plan.received_rows(), message_bytes(grad.row_RH.size(1), grad.row_RH.scalar_type())},
                                  grad.row_RH.options().dtype(at::kByte));
  pack_rows(messages, grad.row_RH, plan.row_of_arrival_R, grad.weight_R, plan.row_of_arrival_R);
  grad = {};
  const auto in_flight = exchange(plan, Direction::from_experts, std::move(messages));
  return DispatchedBack([&plan, in_flight](const DispatchGradient& gradient) {
    combine_messages(gradient.token_TH, gradient.weight_TK, in_flight->take(), plan.row_of_choice_TK);
  });
}

}  // namespace conclave
