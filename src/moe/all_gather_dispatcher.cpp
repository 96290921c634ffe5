#include "moe/all_gather_dispatcher.h"

#include <ATen/ATen.h>

#include "kernels/permute.h"
#include "kernels/values.h"
#include "memory/memory_category.h"
#include "moe/local_dispatcher.h"
#include "moe/send_order.h"

namespace conclave {

std::shared_ptr<RowsInFlight> AllGatherDispatcher::gather(int64_t places, at::Tensor own) {
  const int64_t tokens = own.size(0);
  if (tokens < places) {
    std::vector<int64_t> sizes = own.sizes().vec();
    sizes[0] = places;
    at::Tensor padded = at::zeros(sizes, own.options());
    padded.narrow(0, 0, tokens).copy_(own);
    own = std::move(padded);
  }
  std::vector<int64_t> sizes = own.sizes().vec();
  sizes[0] = places * expert_.size();
  at::Tensor all = at::empty(sizes, own.options());
  Pending pending = expert_.all_gather(all, own);
  return std::make_shared<RowsInFlight>(std::move(all), std::move(own), std::move(pending), clock_);
}

std::shared_ptr<RowsInFlight> AllGatherDispatcher::reduce(int64_t places, at::Tensor all) {
  std::vector<int64_t> sizes = all.sizes().vec();
  sizes[0] = places;
  at::Tensor sum = at::empty(sizes, all.options());
  Pending pending = expert_.reduce_scatter(sum, all);
  return std::make_shared<RowsInFlight>(std::move(sum), std::move(all), std::move(pending), clock_);
}

DispatchPlan AllGatherDispatcher::plan(const Choices& choices) {
  const at::Device device = choices.expert_TK.device();
  const int64_t tokens = choices.tokens(), top_k = choices.top_k();
  const at::Tensor most = at::full({1}, tokens, at::device(device).dtype(at::kLong));
  RowsInFlight(most, most, expert_.all_reduce(most, Reduction::max), clock_).take();
  const auto places = to_host(most, at::full({1}, tokens, at::kLong)).item<int64_t>();

  // Counted from 1, so that the zeros of places without a token, like what was dropped, are nobody's.
  at::Tensor choice = to_host(gather(places, choices.expert_TK + 1)->take()) - 1;
  const int64_t local = experts_ / expert_.size(), first = local * expert_.rank();
  choice = at::where(choice.ge(first).logical_and(choice.lt(first + local)), choice - first, -1).to(at::kInt);
  SendOrder order = make_send_order(choice.view({places * expert_.size(), top_k}).to(device), {local},
                                    choices.assumed_rows_to(first, local));
  DispatchPlan plan = std::move(order.plan);
  plan.tokens = tokens;
  plan.places_per_rank = places;
  const auto* count = order.count_S.const_data_ptr<int64_t>();
  plan.rows_per_expert.assign(count, count + local);
  return plan;
}

Arriving<ExpertRows()> AllGatherDispatcher::begin_dispatch(const DispatchPlan& plan, const at::Tensor& token_TH,
                                                           const at::Tensor& weight_TK) {
  MemoryScope scope(MemoryCategory::dispatch);
  const auto token = gather(plan.places_per_rank, token_TH), weight = gather(plan.places_per_rank, weight_TK);
  return Arriving<ExpertRows()>([&plan, token, weight] {
    const at::Tensor token_NH = token->take();
    return gather_expert_rows(plan, token_NH, weight->take());
  });
}

Dispatcher::Combined AllGatherDispatcher::begin_combine(const DispatchPlan& plan, at::Tensor row_RH) {
  MemoryScope scope(MemoryCategory::dispatch);
  at::Tensor all = at::empty({plan.places_per_rank * expert_.size(), row_RH.size(1)}, row_RH.options());
  combine_rows(all, {}, row_RH, plan.row_of_choice_TK);
  row_RH.reset();
  const auto in_flight = reduce(plan.places_per_rank, std::move(all));
  return Combined([&plan, in_flight](at::Tensor out_TH, const at::Tensor& residual_TH) {
    put(in_flight->take().narrow(0, 0, plan.tokens), std::move(out_TH), residual_TH);
  });
}

Arriving<at::Tensor()> AllGatherDispatcher::begin_combine_backward(const DispatchPlan& plan,
                                                                   const at::Tensor& grad_TH) {
  MemoryScope scope(MemoryCategory::dispatch);
  const auto in_flight = gather(plan.places_per_rank, grad_TH);
  return Arriving<at::Tensor()>([&plan, in_flight] {
    const at::Tensor grad_NH = in_flight->take();
    MemoryScope scope(MemoryCategory::dispatch);
    at::Tensor rows = at::empty({plan.sent_rows(), grad_NH.size(1)}, grad_NH.options());
    gather_rows(rows, grad_NH, plan.token_of_row_R);
    return rows;
  });
}

Dispatcher::DispatchedBack AllGatherDispatcher::begin_dispatch_backward(const DispatchPlan& plan, ExpertRows grad) {
  MemoryScope scope(MemoryCategory::dispatch);
  const int64_t all = plan.places_per_rank * expert_.size();
  at::Tensor token_NH = at::empty({all, grad.row_RH.size(1)}, grad.row_RH.options());
  combine_rows(token_NH, {}, grad.row_RH, plan.row_of_choice_TK);
  at::Tensor weight_NK = at::empty({all, plan.top_k}, grad.weight_R.options());
  gather_weight_gradient(weight_NK, plan, grad.weight_R);
  grad = {};
  const auto token = reduce(plan.places_per_rank, std::move(token_NH)),
             weight = reduce(plan.places_per_rank, std::move(weight_NK));
  return DispatchedBack([&plan, token, weight](const DispatchGradient& gradient) {
    gradient.token_TH.copy_(token->take().narrow(0, 0, plan.tokens));
    gradient.weight_TK.copy_(weight->take().narrow(0, 0, plan.tokens));
  });
}

}  // namespace conclave
