// The top-k softmax router of Mixtral, in fp32: probabilities over all experts, the k largest, renormalized to sum 1.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

struct Routing {
  at::Tensor probability_TE;       // fp32: softmax of the logits
  at::Tensor logsumexp_T;          // fp32: of the logits
  at::Tensor expert_of_choice_TK;  // int32, by descending probability; equal probabilities: the lower expert first
  at::Tensor weight_TK;            // fp32: the chosen probabilities, divided by their sum
};

// What balancing needs to know of the tokens of this rank.
struct RoutingStatistics {
  at::Tensor count_E;               // double: choices that fell on each expert
  at::Tensor probability_sum_E;     // double: sum over tokens of each expert's probability
  double logsumexp_square_sum = 0;  // sum over tokens of logsumexp^2 (z-loss: Zoph et al., "ST-MoE", 2022)
};

// logits [T,E], fp32 or bf16.
Routing route(const at::Tensor& logits_TE, int64_t top_k);

// Sums in token order within fixed blocks, so that the result does not depend on threads. On the CPU whatever the
// routing's device.
RoutingStatistics routing_statistics(const Routing& routing);

// grad_logits [T,E] (dtype of the logits) from the gradient of the renormalized weights, plus what the balancing losses
// add:
//   probability_gradient [E] fp32: d loss / d probability[t,e], the same for every token (the aux loss); undefined for
//   none; z_coefficient: d loss / d (logsumexp[t]^2), the same for every token (the z-loss).
void route_backward(at::Tensor grad_logits_TE, const Routing& routing, const at::Tensor& grad_weight_TK,
                    const at::Tensor& probability_gradient_E, double z_coefficient);

namespace reference {
Routing route(const at::Tensor& logits_TE, int64_t top_k);
RoutingStatistics routing_statistics(const Routing& routing);
void route_backward(at::Tensor grad_logits_TE, const Routing& routing, const at::Tensor& grad_weight_TK,
                    const at::Tensor& probability_gradient_E, double z_coefficient);
}  // namespace reference

}  // namespace conclave
