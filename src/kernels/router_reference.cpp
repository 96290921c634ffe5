#include <ATen/ATen.h>

#include "kernels/check.h"
#include "kernels/router.h"

namespace conclave::reference {

Routing route(const at::Tensor& logits_TE, int64_t top_k) {
  const at::Tensor logits = logits_TE.to(wide_dtype(logits_TE.scalar_type()));
  Routing routing;
  routing.probability_TE = at::softmax(logits, 1);
  routing.logsumexp_T = at::logsumexp(logits, {1});
  // A stable descending sort puts the lower expert first among equals, which topk does not promise.
  const auto [sorted, order] = at::sort(routing.probability_TE, /*stable=*/true, /*dim=*/1, /*descending=*/true);
  const at::Tensor chosen = sorted.narrow(1, 0, top_k);
  routing.expert_of_choice_TK = order.narrow(1, 0, top_k).to(at::kInt).contiguous();
  routing.weight_TK = chosen / chosen.sum(1, /*keepdim=*/true);
  return routing;
}

RoutingStatistics routing_statistics(const Routing& routing) {
  const int64_t experts = routing.probability_TE.size(1);
  RoutingStatistics statistics;
  statistics.count_E =
      at::bincount(routing.expert_of_choice_TK.flatten(), /*weights=*/{}, experts).to(at::kCPU, at::kDouble);
  statistics.probability_sum_E = routing.probability_TE.to(at::kDouble).sum(0).to(at::kCPU);
  statistics.logsumexp_square_sum = routing.logsumexp_T.to(at::kDouble).square().sum().item<double>();
  return statistics;
}

// weight_k = p_k / s with s the sum of the chosen p: d p_k = (d weight_k - sum_j d weight_j weight_j) / s.
// Softmax: d logit_e = p_e (d p_e - sum_f p_f d p_f). Logsumexp: d logit_e = p_e d logsumexp.
void route_backward(at::Tensor grad_logits_TE, const Routing& routing, const at::Tensor& grad_weight_TK,
                    const at::Tensor& probability_gradient_E, double z_coefficient) {
  const at::Tensor& probability = routing.probability_TE;
  const at::Tensor expert = routing.expert_of_choice_TK.to(at::kLong);
  const at::Tensor chosen_sum = probability.gather(1, expert).sum(1, /*keepdim=*/true);
  const at::Tensor mean_grad = (grad_weight_TK * routing.weight_TK).sum(1, true);
  at::Tensor grad_probability = at::zeros_like(probability);
  grad_probability.scatter_(1, expert, (grad_weight_TK - mean_grad) / chosen_sum);
  if (probability_gradient_E.defined()) grad_probability += probability_gradient_E;
  const at::Tensor through_softmax = grad_probability - (grad_probability * probability).sum(1, true);
  const at::Tensor through_logsumexp = (2 * z_coefficient) * routing.logsumexp_T.unsqueeze(1);
  grad_logits_TE.copy_(probability * (through_softmax + through_logsumexp));
}

}  // namespace conclave::reference
