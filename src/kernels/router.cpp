#include "kernels/router.h"

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {

namespace {

void check_options(const char* op, const RouterOptions& options, int64_t experts) {
  check_invariant(options.top_k >= 1 && options.top_k <= experts, "{}: top_k {} of {} experts", op, options.top_k,
                  experts);
  check_invariant(options.groups >= 1 && experts % options.groups == 0, "{}: {} experts in {} groups", op, experts,
                  options.groups);
  check_invariant(options.top_groups >= 1 && options.top_groups <= options.groups, "{}: {} of {} groups", op,
                  options.top_groups, options.groups);
  check_invariant(options.best_of_group == 1 || options.best_of_group == 2, "{}: a group's {} best experts", op,
                  options.best_of_group);
  check_invariant(options.top_k <= experts / options.groups * options.top_groups,
                  "{}: top_k {} of {} groups with {} experts each", op, options.top_k, options.top_groups,
                  experts / options.groups);
}

void check_routing(const char* op, const Routing& routing, const RouterOptions& options) {
  check_dims(op, "score", routing.score_TE, 2);
  const int64_t tokens = routing.score_TE.size(0);
  check_options(op, options, routing.score_TE.size(1));
  const at::ScalarType wide = routing.score_TE.scalar_type();
  check_tensor(op, "logsumexp", routing.logsumexp_T, {tokens}, wide);
  check_tensor(op, "expert_of_choice", routing.expert_of_choice_TK, {tokens, options.top_k}, at::kInt);
  check_tensor(op, "weight", routing.weight_TK, {tokens, options.top_k}, wide);
}

}  // namespace

Routing route(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& selection_bias_E) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "route";
  check_dims(op, "logits", logits_TE, 2);
  check_options(op, options, logits_TE.size(1));
  if (selection_bias_E.defined())
    check_tensor(op, "selection_bias", selection_bias_E, {logits_TE.size(1)}, wide_dtype(logits_TE.scalar_type()));
  return kernels_of(logits_TE).route(logits_TE, options, selection_bias_E);
}

Routing route_to(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& expert_of_choice_TK) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "route_to";
  check_dims(op, "logits", logits_TE, 2);
  check_options(op, options, logits_TE.size(1));
  check_tensor(op, "expert_of_choice", expert_of_choice_TK, {logits_TE.size(0), options.top_k}, at::kInt);
  return kernels_of(logits_TE).route_to(logits_TE, options, expert_of_choice_TK);
}

RoutingStatistics routing_statistics(const Routing& routing, const RouterOptions& options) {
  const KernelScope timed(Phase::kernels);
  check_routing("routing_statistics", routing, options);
  return kernels_of(routing.score_TE).routing_statistics(routing, options);
}

void route_backward(at::Tensor grad_logits_TE, const Routing& routing, const RouterOptions& options,
                    const at::Tensor& grad_weight_TK, const at::Tensor& probability_gradient_E, double z_coefficient) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "route_backward";
  check_routing(op, routing, options);
  check_dims(op, "grad_logits", grad_logits_TE, 2);
  const at::ScalarType wide = routing.score_TE.scalar_type();
  check_tensor(op, "grad_logits", grad_logits_TE, routing.score_TE.sizes(), grad_logits_TE.scalar_type());
  check_tensor(op, "grad_weight", grad_weight_TK, routing.weight_TK.sizes(), wide);
  if (probability_gradient_E.defined()) {
    check_tensor(op, "probability_gradient", probability_gradient_E, {routing.score_TE.size(1)}, wide);
  }
  check_invariant(options.scores == RouterScores::softmax || z_coefficient == 0, "{}: a z-loss of sigmoid scores", op);
  kernels_of(routing.score_TE)
      .route_backward(grad_logits_TE, routing, options, grad_weight_TK, probability_gradient_E, z_coefficient);
}

}  // namespace conclave
