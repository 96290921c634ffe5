#include "moe/routed_experts.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "memory/memory_category.h"
#include "moe/fp8_experts.h"
#include "moe/grouped_experts.h"
#include "moe/guest_experts.h"

namespace conclave {
namespace {

at::Tensor part_of(const at::Tensor& tensor, const TokenPart& part) {
  return tensor.narrow(0, part.begin, part.count);
}

// One part's way from tokens to rows.
struct Dispatching {
  std::optional<GuestWeights> guests;
  Arriving<ExpertRows()> rows;
};

}  // namespace

RoutedExperts::RoutedExperts(Communicator& expert, int64_t experts, const DispatchSettings& settings, StepClock& clock)
    : expert_(expert),
      experts_(experts),
      settings_(settings),
      clock_(clock),
      dispatcher_(make_dispatcher(expert, experts, clock, settings)) {
  check_invariant(settings.chunks == 1 || !divides_overload(), "{} overlapping parts, and parts that follow each other",
                  settings.chunks);
}

RoutedExperts::Parts RoutedExperts::plan_parts(const Choices& choices) const {
  const RangeScope range(clock_, "plan");
  MemoryScope scope(MemoryCategory::activations);
  const bool travels = expert_.size() > 1;
  const bool bounded = divides_overload() && travels;
  const std::vector<TokenPart> divided =
      bounded ? parts_within(settings_.max_tokens_per_rank_factor, choices, experts_, expert_)
              : equal_parts(choices.expert_TK.size(0), travels ? settings_.chunks : 1);
  Parts parts;
  for (const TokenPart& tokens : divided) parts.push_back({tokens, dispatcher_->plan(choices.part(tokens)), {}, {}});
  return parts;
}

RoutedExperts::Functions RoutedExperts::functions_for(const ExpertRows& rows, const ExpertWeights& weights) const {
  if (settings_.products == ExpertPrecision::fp8) return {fp8_experts_forward, fp8_experts_backward};
  if (takes_grouped_products(rows, weights)) return {grouped_experts_forward, grouped_experts_backward};
  return {experts_forward, experts_backward};
}

bool RoutedExperts::needs_tokens(const Parts& parts) {
  for (const RoutedPart& part : parts)
    if (!part.rows.row_RH.defined()) return true;
  return parts.empty();
}

at::Tensor RoutedExperts::forward(RoutedTokens tokens, const at::Tensor& residual_TH, const ExpertWeights& weights,
                                  PreActivation pre_activation, Parts& parts) const {
  parts = plan_parts(tokens.choices);
  const bool one_by_one = follow_each_other(parts);
  const bool drop_rows = one_by_one && parts.size() > 1;
  const at::Tensor& like_TH = residual_TH.defined() ? residual_TH : tokens.token_TH;
  const auto out_sizes = like_TH.sizes().vec();
  const auto out_options = like_TH.options();
  const at::ScalarType dtype = like_TH.scalar_type();
  at::Tensor out_TH;
  std::vector<Dispatching> dispatching(parts.size());
  std::vector<Dispatcher::Combined> combining(parts.size());
  const auto start = [&](size_t i) {
    if (i == parts.size()) return;
    const RoutedPart& part = parts[i];
    if (part.plan.spill) dispatching[i].guests.emplace(*part.plan.spill, weights, dtype, expert_, clock_);
    dispatching[i].rows = dispatcher_->begin_dispatch(part.plan, part_of(tokens.token_TH, part.tokens),
                                                      part_of(tokens.weight_TK, part.tokens));
    if (i + 1 == parts.size()) tokens.token_TH.reset();
  };
  const auto finish = [&](size_t i) {
    combining[i].finish(part_of(out_TH, parts[i].tokens),
                        residual_TH.defined() ? part_of(residual_TH, parts[i].tokens) : at::Tensor());
  };

  if (!one_by_one) start(0);
  for (size_t i = 0; i < parts.size(); ++i) {
    RoutedPart& part = parts[i];
    start(one_by_one ? i : i + 1);
    part.rows = dispatching[i].rows.finish();
    ExpertOutput output = [&] {
      const RangeScope range(clock_, "experts");
      const ExpertWeights all = dispatching[i].guests ? dispatching[i].guests->finish() : weights;
      const auto forward = functions_for(part.rows, all).forward;
      return forward(part.rows, part.plan.rows_per_expert, all, drop_rows ? PreActivation::repeated : pre_activation);
    }();
    dispatching[i].guests.reset();
    part.gate_up_RJ = std::move(output.gate_up_RJ);
    if (drop_rows) part.rows = {};
    if (!out_TH.defined()) {
      MemoryScope scope(MemoryCategory::activations);
      out_TH = at::empty(out_sizes, out_options);
    }
    combining[i] = dispatcher_->begin_combine(part.plan, std::move(output.row_RH));
    if (one_by_one)
      finish(i);
    else if (i > 0)
      finish(i - 1);
  }
  if (!one_by_one) finish(parts.size() - 1);
  return out_TH;
}

DispatchGradient RoutedExperts::backward(RoutedTokens tokens, const at::Tensor& grad_TH, const ExpertWeights& weights,
                                         ExpertGradients& gradients, Parts parts) const {
  if (parts.empty()) parts = plan_parts(tokens.choices);
  const bool one_by_one = follow_each_other(parts);
  check_invariant(!needs_tokens(parts) || tokens.token_TH.defined(),
                  "rows of {} parts are needed, but there are no tokens", parts.size());
  DispatchGradient result;
  std::vector<Dispatching> dispatching(parts.size());
  std::vector<Arriving<at::Tensor()>> arriving(parts.size());
  std::vector<Dispatcher::DispatchedBack> returning(parts.size());
  const auto start = [&](size_t i) {
    if (i == parts.size()) return;
    RoutedPart& part = parts[i];
    if (part.plan.spill)
      dispatching[i].guests.emplace(*part.plan.spill, weights, grad_TH.scalar_type(), expert_, clock_);
    const bool again = !part.rows.row_RH.defined();
    if (again)
      dispatching[i].rows = dispatcher_->begin_dispatch(part.plan, part_of(tokens.token_TH, part.tokens),
                                                        part_of(tokens.weight_TK, part.tokens));
    if (i + 1 == parts.size()) tokens.token_TH.reset();
    if (again && one_by_one) part.rows = dispatching[i].rows.finish();
    arriving[i] = dispatcher_->begin_combine_backward(part.plan, part_of(grad_TH, part.tokens));
  };
  const auto finish = [&](size_t i) {
    if (!result.token_TH.defined()) {
      MemoryScope scope(MemoryCategory::dispatch);
      result = {at::empty_like(grad_TH), at::empty_like(tokens.weight_TK)};
    }
    returning[i].finish({part_of(result.token_TH, parts[i].tokens), part_of(result.weight_TK, parts[i].tokens)});
  };

  if (!one_by_one) start(0);
  for (size_t i = 0; i < parts.size(); ++i) {
    RoutedPart& part = parts[i];
    start(one_by_one ? i : i + 1);
    if (!part.rows.row_RH.defined()) part.rows = dispatching[i].rows.finish();
    at::Tensor grad_RH = arriving[i].finish();
    std::optional<GuestGradients> guest_gradients;
    if (part.plan.spill && !gradients.wanted().empty())
      guest_gradients.emplace(*part.plan.spill, gradients, expert_, clock_);
    ExpertGradients with_guests = guest_gradients ? guest_gradients->with_guests(gradients) : gradients;
    ExpertRows grad_rows = [&] {
      const RangeScope range(clock_, "experts");
      const ExpertWeights all = dispatching[i].guests ? dispatching[i].guests->finish() : weights;
      const auto backward = functions_for(part.rows, all).backward;
      return backward(grad_RH, std::exchange(part.rows, {}), std::move(part.gate_up_RJ), part.plan.rows_per_expert, all,
                      with_guests);
    }();
    gradients.accumulate();
    grad_RH.reset();
    dispatching[i].guests.reset();
    if (guest_gradients) guest_gradients->send();
    returning[i] = dispatcher_->begin_dispatch_backward(part.plan, std::move(grad_rows));
    if (one_by_one)
      finish(i);
    else if (i > 0)
      finish(i - 1);
    if (guest_gradients) guest_gradients->add_to(gradients);
  }
  if (!one_by_one) finish(parts.size() - 1);
  return result;
}

}  // namespace conclave
