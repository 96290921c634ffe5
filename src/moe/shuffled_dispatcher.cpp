#include "moe/shuffled_dispatcher.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/random.h"
#include "kernels/permute.h"
#include "kernels/values.h"
#include "memory/memory_category.h"

namespace conclave {
namespace {

// Fisher and Yates: each place from the last on is exchanged with one before it, or itself.
std::vector<int64_t> random_permutation(int64_t count, uint64_t seed) {
  static const uint64_t stream = random_stream("global token shuffle");
  std::vector<int64_t> places(static_cast<size_t>(count));
  std::iota(places.begin(), places.end(), int64_t{0});
  for (int64_t i = count - 1; i > 0; --i)
    std::swap(places[i], places[random_u64(seed, stream, i) % static_cast<uint64_t>(i + 1)]);
  return places;
}

}  // namespace

const std::vector<int64_t>& ShuffledDispatcher::permutation(int64_t tokens) {
  if (static_cast<int64_t>(permutation_.size()) != tokens) permutation_ = random_permutation(tokens, seed_);
  return permutation_;
}

DispatchPlan ShuffledDispatcher::plan(const Choices& choices) {
  const int ranks = expert_.size();
  const at::Device device = choices.expert_TK.device();
  DispatchPlan plan;
  plan.tokens = choices.tokens();
  plan.top_k = choices.top_k();

  const at::Tensor own = at::full({1}, plan.tokens, at::device(device).dtype(at::kLong));
  at::Tensor all = at::empty({ranks}, own.options());
  all = to_host(RowsInFlight(all, own, expert_.all_gather(all, own), clock_).take(),
                at::full({ranks}, plan.tokens, at::kLong));
  std::vector<int64_t> end;  // of each rank's places
  end.reserve(static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) end.push_back((rank == 0 ? 0 : end.back()) + all[rank].item<int64_t>());
  const auto rank_of = [&](int64_t place) { return std::upper_bound(end.begin(), end.end(), place) - end.begin(); };
  const std::vector<int64_t>& places = permutation(end.back());

  plan.sent_per_rank.assign(ranks, 0);
  plan.received_per_rank.assign(ranks, 0);
  std::vector<std::vector<int32_t>> tokens_to(static_cast<size_t>(ranks));
  for (int64_t n = 0; n < end.back(); ++n) {
    const int64_t source = rank_of(n), destination = rank_of(places[n]);
    if (source == expert_.rank()) {
      tokens_to[destination].push_back(static_cast<int32_t>(n - (end[source] - plan.tokens)));
      ++plan.sent_per_rank[destination];
    }
    if (destination == expert_.rank()) ++plan.received_per_rank[source];
  }
  at::Tensor token_of_row_R = at::empty({plan.tokens}, at::kInt),
             row_of_token_T1 = at::empty({plan.tokens, 1}, at::kInt);
  int32_t row = 0;
  for (const std::vector<int32_t>& tokens : tokens_to)
    for (const int32_t token : tokens) {
      token_of_row_R.data_ptr<int32_t>()[row] = token;
      row_of_token_T1.data_ptr<int32_t>()[token] = row++;
    }
  plan.token_of_row_R = token_of_row_R.to(device);
  plan.row_of_choice_TK = row_of_token_T1.to(device);

  const auto inner =
      std::make_shared<const DispatchPlan>(inner_->plan(choices.evened(to_places(plan, choices.expert_TK))));
  plan.rows_per_expert = inner->rows_per_expert;
  plan.spill = inner->spill;
  plan.after_shuffle = inner;
  return plan;
}

at::Tensor ShuffledDispatcher::to_places(const DispatchPlan& plan, const at::Tensor& own) const {
  MemoryScope scope(MemoryCategory::dispatch);
  at::Tensor sent = at::empty_like(own);
  gather_rows(sent, own, plan.token_of_row_R);
  at::Tensor arrived = at::empty({plan.received_rows(), own.size(1)}, own.options());
  Pending pending = expert_.all_to_all(arrived, sent, plan.received_per_rank, plan.sent_per_rank);
  return RowsInFlight(std::move(arrived), std::move(sent), std::move(pending), clock_).take();
}

at::Tensor ShuffledDispatcher::from_places(const DispatchPlan& plan, const at::Tensor& shuffled) const {
  MemoryScope scope(MemoryCategory::dispatch);
  at::Tensor arrived = at::empty({plan.sent_rows(), shuffled.size(1)}, shuffled.options());
  Pending pending = expert_.all_to_all(arrived, shuffled, plan.sent_per_rank, plan.received_per_rank);
  arrived = RowsInFlight(std::move(arrived), shuffled, std::move(pending), clock_).take();
  at::Tensor own = at::empty_like(arrived);
  gather_rows(own, arrived, plan.row_of_choice_TK.view(-1));
  return own;
}

Arriving<ExpertRows()> ShuffledDispatcher::begin_dispatch(const DispatchPlan& plan, const at::Tensor& token_TH,
                                                          const at::Tensor& weight_TK) {
  const at::Tensor token = to_places(plan, token_TH);
  return inner_->begin_dispatch(*plan.after_shuffle, token, to_places(plan, weight_TK));
}

Dispatcher::Combined ShuffledDispatcher::begin_combine(const DispatchPlan& plan, at::Tensor row_RH) {
  const auto options = row_RH.options();
  const int64_t hidden = row_RH.size(1);
  return Combined(
      [this, &plan, options, hidden, arriving = inner_->begin_combine(*plan.after_shuffle, std::move(row_RH))](
          at::Tensor out_TH, const at::Tensor& residual_TH) mutable {
        MemoryScope scope(MemoryCategory::dispatch);
        at::Tensor sum = at::empty({plan.received_rows(), hidden}, options);
        arriving.finish(sum, {});
        put(from_places(plan, sum), std::move(out_TH), residual_TH);
      });
}

Arriving<at::Tensor()> ShuffledDispatcher::begin_combine_backward(const DispatchPlan& plan, const at::Tensor& grad_TH) {
  return inner_->begin_combine_backward(*plan.after_shuffle, to_places(plan, grad_TH));
}

Dispatcher::DispatchedBack ShuffledDispatcher::begin_dispatch_backward(const DispatchPlan& plan, ExpertRows grad) {
  const auto row_options = grad.row_RH.options(), weight_options = grad.weight_R.options();
  const int64_t hidden = grad.row_RH.size(1);
  return DispatchedBack([this, &plan, row_options, weight_options, hidden,
                         arriving = inner_->begin_dispatch_backward(*plan.after_shuffle, std::move(grad))](
                            const DispatchGradient& gradient) mutable {
    MemoryScope scope(MemoryCategory::dispatch);
    const DispatchGradient shuffled{at::empty({plan.received_rows(), hidden}, row_options),
                                    at::empty({plan.received_rows(), plan.top_k}, weight_options)};
    arriving.finish(shuffled);
    gradient.token_TH.copy_(from_places(plan, shuffled.token_TH));
    gradient.weight_TK.copy_(from_places(plan, shuffled.weight_TK));
  });
}

}  // namespace conclave
