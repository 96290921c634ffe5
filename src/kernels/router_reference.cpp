#include <ATen/ATen.h>

#include <limits>

#include "kernels/check.h"
#include "kernels/router.h"

namespace conclave::reference {

namespace {

at::Tensor scores_of(const at::Tensor& logits, RouterScores scores) {
  return scores == RouterScores::softmax ? at::softmax(logits, 1) : at::sigmoid(logits);
}

// Minus infinity for the experts of groups that are not among the best.
at::Tensor keep_best_groups(const at::Tensor& choosing_TE, const RouterOptions& options) {
  if (options.top_groups == options.groups) return choosing_TE;
  const int64_t tokens = choosing_TE.size(0), size = choosing_TE.size(1) / options.groups;
  const at::Tensor by_group = choosing_TE.view({tokens, options.groups, size});
  const at::Tensor group_score = std::get<0>(by_group.topk(std::min(options.best_of_group, size), 2)).sum(2);
  const at::Tensor order = std::get<1>(at::sort(group_score, /*stable=*/true, /*dim=*/1, /*descending=*/true));
  at::Tensor dropped = at::ones_like(group_score, at::kBool);
  dropped.scatter_(1, order.narrow(1, 0, options.top_groups), false);
  return by_group.masked_fill(dropped.unsqueeze(2), -std::numeric_limits<double>::infinity()).view_as(choosing_TE);
}

}  // namespace

Routing route_to(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& expert_of_choice_TK) {
  const at::Tensor logits = logits_TE.to(wide_dtype(logits_TE.scalar_type()));
  Routing routing;
  routing.score_TE = scores_of(logits, options.scores);
  routing.logsumexp_T = at::logsumexp(logits, {1});
  routing.expert_of_choice_TK = expert_of_choice_TK;
  const at::Tensor chosen = routing.score_TE.gather(1, expert_of_choice_TK.to(at::kLong));
  routing.weight_TK = options.renormalize ? chosen / chosen.sum(1, /*keepdim=*/true) : chosen;
  if (options.scale != 1.0) routing.weight_TK = routing.weight_TK * options.scale;
  return routing;
}

Routing route(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& selection_bias_E) {
  at::Tensor choosing = scores_of(logits_TE.to(wide_dtype(logits_TE.scalar_type())), options.scores);
  if (selection_bias_E.defined()) choosing = choosing + selection_bias_E;
  choosing = keep_best_groups(choosing, options);
  // A stable descending sort puts the lower expert first among equals, which topk does not promise.
  const at::Tensor order = std::get<1>(at::sort(choosing, /*stable=*/true, /*dim=*/1, /*descending=*/true));
  return reference::route_to(logits_TE, options, order.narrow(1, 0, options.top_k).to(at::kInt).contiguous());
}

RoutingStatistics routing_statistics(const Routing& routing, const RouterOptions& options) {
  const int64_t experts = routing.score_TE.size(1);
  at::Tensor probability = routing.score_TE.to(at::kDouble);
  if (options.scores == RouterScores::sigmoid) probability = probability / probability.sum(1, /*keepdim=*/true);
  RoutingStatistics statistics;
  statistics.count_E = at::bincount(routing.expert_of_choice_TK.flatten(), /*weights=*/{}, experts).to(at::kDouble);
  statistics.probability_sum_E = probability.sum(0);
  statistics.logsumexp_square_sum = routing.logsumexp_T.to(at::kDouble).square().sum();
  statistics.confidence_sum = probability.amax(1).sum();
  return statistics;
}

// Renormalized, weight_k = c s_k / S with S the sum of the chosen s: d s_k = (c d weight_k - sum_j d weight_j weight_j)
// / S; else d s_k = c d weight_k.
// Probability: the score itself (softmax), or p_e = s_e / A with A the sum of all s: d s_e = (d p_e - sum_f d p_f p_f)
// / A (sigmoid).
// Logits: d logit_e = s_e (d s_e - sum_f s_f d s_f + d logsumexp) (softmax), d s_e s_e (1 - s_e) (sigmoid).
void route_backward(at::Tensor grad_logits_TE, const Routing& routing, const RouterOptions& options,
                    const at::Tensor& grad_weight_TK, const at::Tensor& probability_gradient_E, double z_coefficient) {
  const at::Tensor& score = routing.score_TE;
  const bool is_softmax = options.scores == RouterScores::softmax;
  const at::Tensor expert = routing.expert_of_choice_TK.to(at::kLong);
  at::Tensor grad_chosen = grad_weight_TK * options.scale;
  if (options.renormalize) {
    const at::Tensor chosen_sum = score.gather(1, expert).sum(1, /*keepdim=*/true);
    grad_chosen = (grad_chosen - (grad_weight_TK * routing.weight_TK).sum(1, true)) / chosen_sum;
  }
  at::Tensor grad_score = at::zeros_like(score);
  grad_score.scatter_(1, expert, grad_chosen);
  if (probability_gradient_E.defined()) {
    if (is_softmax) {
      grad_score += probability_gradient_E;
    } else {
      const at::Tensor sum = score.sum(1, /*keepdim=*/true);
      grad_score += (probability_gradient_E - (score / sum * probability_gradient_E).sum(1, true)) / sum;
    }
  }
  if (!is_softmax) {
    grad_logits_TE.copy_(grad_score * score * (1 - score));
    return;
  }
  const at::Tensor through_softmax = grad_score - (grad_score * score).sum(1, true);
  const at::Tensor through_logsumexp = (2 * z_coefficient) * routing.logsumexp_T.unsqueeze(1);
  grad_logits_TE.copy_(score * (through_softmax + through_logsumexp));
}

}  // namespace conclave::reference
