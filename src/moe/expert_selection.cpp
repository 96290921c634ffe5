#include "moe/expert_selection.h"

#include <ATen/ATen.h>

#include "base/error.h"

namespace conclave {

Routing ExpertSelection::route_in_evaluation(int64_t layer, const at::Tensor& logits_TE) const {
  return route(logits_TE, options_, bias_of(layer));
}

void ExpertSelection::use_bias_of_model(at::Tensor bias_LE) {
  bias_LE_ = std::move(bias_LE);
  bias_is_of_model_ = true;
}

void ExpertSelection::restore(const at::Tensor&) {
  check_invariant(false, "this balancing rule has no state to restore");
}

Routing TopKSelection::route_in_training(int64_t layer, const at::Tensor& logits_TE, const TokenNumbers&) {
  return route(logits_TE, options(), bias_of(layer));
}

Routing RoundRobinSelection::route_in_training(int64_t, const at::Tensor& logits_TE, const TokenNumbers& tokens) {
  const int64_t count = logits_TE.size(0), experts = logits_TE.size(1), top_k = options().top_k;
  check_invariant(static_cast<int64_t>(tokens.sample_of_B.size()) * tokens.sequence == count,
                  "{} samples of {} tokens are {} rows", tokens.sample_of_B.size(), tokens.sequence, count);
  at::Tensor choice_TK = at::empty({count, top_k}, at::kInt);
  auto* choice = choice_TK.data_ptr<int32_t>();
  for (int64_t t = 0; t < count; ++t) {
    const int64_t number = tokens.sample_of_B[t / tokens.sequence] * tokens.sequence + t % tokens.sequence;
    for (int64_t k = 0; k < top_k; ++k) choice[t * top_k + k] = static_cast<int32_t>((number * top_k + k) % experts);
  }
  return route_to(logits_TE, options(), choice_TK.to(logits_TE.device()));
}

BiasedSelection::BiasedSelection(const RouterOptions& options, double rate, int64_t layers, int64_t experts,
                                 at::Device device)
    : ExpertSelection(options), rate_(rate) {
  bias_LE_ = at::zeros({layers, experts}, at::device(device).dtype(at::kFloat));
}

Routing BiasedSelection::route_in_training(int64_t layer, const at::Tensor& logits_TE, const TokenNumbers&) {
  return route(logits_TE, options(), bias_of(layer));
}

void BiasedSelection::finish_step(const at::Tensor& count_LE) {
  const at::Tensor direction_LE = (count_LE.mean(1, /*keepdim=*/true) - count_LE).sign();
  bias_LE_.add_(direction_LE.to(bias_LE_.options()), rate_);
}

}  // namespace conclave
