#include "kernels/router.h"

#include "kernels/check.h"
#include "kernels/cpu.h"

namespace conclave {

namespace {

void check_routing(const char* op, const Routing& routing) {
  check_dims(op, "probability", routing.probability_TE, 2);
  check_dims(op, "expert_of_choice", routing.expert_of_choice_TK, 2);
  const int64_t tokens = routing.probability_TE.size(0), top_k = routing.expert_of_choice_TK.size(1);
  const at::ScalarType wide = routing.probability_TE.scalar_type();
  check_tensor(op, "logsumexp", routing.logsumexp_T, {tokens}, wide);
  check_tensor(op, "expert_of_choice", routing.expert_of_choice_TK, {tokens, top_k}, at::kInt);
  check_tensor(op, "weight", routing.weight_TK, {tokens, top_k}, wide);
}

}  // namespace

Routing route(const at::Tensor& logits_TE, int64_t top_k) {
  check_dims("route", "logits", logits_TE, 2);
  check_invariant(top_k >= 1 && top_k <= logits_TE.size(1), "route: top_k {} of {} experts", top_k, logits_TE.size(1));
  if (has_cpu_path(logits_TE)) return cpu::route(logits_TE, top_k);
  return reference::route(logits_TE, top_k);
}

RoutingStatistics routing_statistics(const Routing& routing) {
  check_routing("routing_statistics", routing);
  if (has_cpu_path(routing.probability_TE)) return cpu::routing_statistics(routing);
  return reference::routing_statistics(routing);
}

void route_backward(at::Tensor grad_logits_TE, const Routing& routing, const at::Tensor& grad_weight_TK,
                    const at::Tensor& probability_gradient_E, double z_coefficient) {
  constexpr auto op = "route_backward";
  check_routing(op, routing);
  check_dims(op, "grad_logits", grad_logits_TE, 2);
  const at::ScalarType wide = routing.probability_TE.scalar_type();
  check_tensor(op, "grad_logits", grad_logits_TE, routing.probability_TE.sizes(), grad_logits_TE.scalar_type());
  check_tensor(op, "grad_weight", grad_weight_TK, routing.weight_TK.sizes(), wide);
  if (probability_gradient_E.defined()) {
    check_tensor(op, "probability_gradient", probability_gradient_E, {routing.probability_TE.size(1)}, wide);
  }
  if (has_cpu_path(routing.probability_TE))
    return cpu::route_backward(grad_logits_TE, routing, grad_weight_TK, probability_gradient_E, z_coefficient);
  reference::route_backward(grad_logits_TE, routing, grad_weight_TK, probability_gradient_E, z_coefficient);
}

}  // namespace conclave
