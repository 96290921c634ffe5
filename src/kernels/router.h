// The top-k router in fp32: a score of every expert for every token, the k best experts, their scores as routing
// weights. The defaults are softmax scores, renormalized over the chosen; families choose the other options.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

enum class RouterScores {
  softmax,  // over all experts
  sigmoid,  // of each logit alone (DeepSeek-V3)
};

struct RouterOptions {
  int64_t top_k = 2;
  RouterScores scores = RouterScores::softmax;
  bool renormalize = true;  // divide the chosen scores by their sum
  double scale = 1.0;       // of the weights, after renormalization
  // Group-limited choice: experts form `groups` equal groups of neighbours; only experts of the `top_groups` best
  // groups can be chosen. A group is as good as the sum of its `best_of_group` best experts: one (DeepSeek-V2, arXiv
  // 2405.04434, section 2.2.2) or two (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
  int64_t groups = 1;
  int64_t top_groups = 1;
  int64_t best_of_group = 2;
};

struct Routing {
  at::Tensor score_TE;             // fp32: softmax or sigmoid of the logits
  at::Tensor logsumexp_T;          // fp32: of the logits
  at::Tensor expert_of_choice_TK;  // int32; when chosen here: by descending score, of equal ones the lower expert first
  at::Tensor weight_TK;            // fp32: the chosen scores, renormalized if asked, times the scale
};

// What balancing needs to know of the tokens of this rank. An expert's probability is its score, divided by the sum of
// the token's scores where that is not 1 by itself (sigmoid).
struct RoutingStatistics {
  // Doubles, on the routing's device: nobody has to wait for them.
  at::Tensor count_E;               // choices that fell on each expert
  at::Tensor probability_sum_E;     // sum over tokens of each expert's probability
  at::Tensor logsumexp_square_sum;  // one number: sum over tokens of logsumexp^2 (z-loss: Zoph et al., "ST-MoE", 2022)
  at::Tensor confidence_sum;        // one number: sum over tokens of the highest probability
};

// logits [T,E], fp32 or bf16. selection_bias [E] fp32 is added to the scores for choosing, not for weighing; undefined
// for none.
Routing route(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& selection_bias_E = {});

// The same with choices made elsewhere: expert_of_choice [T,K] int32, each token's experts distinct.
Routing route_to(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& expert_of_choice_TK);

// Sums in token order within fixed blocks, so that the result does not depend on threads.
RoutingStatistics routing_statistics(const Routing& routing, const RouterOptions& options);

// grad_logits [T,E] (dtype of the logits) from the gradient of the weights, plus what the balancing losses add:
//   probability_gradient [E] fp32: d loss / d probability[t,e], the same for every token (the aux loss); undefined for
//   none; z_coefficient: d loss / d (logsumexp[t]^2), the same for every token (the z-loss); 0 with sigmoid scores,
//   which no logsumexp normalizes.
// Choices are constants: no gradient flows through which experts were chosen, nor into a selection bias.
void route_backward(at::Tensor grad_logits_TE, const Routing& routing, const RouterOptions& options,
                    const at::Tensor& grad_weight_TK, const at::Tensor& probability_gradient_E, double z_coefficient);

namespace reference {
Routing route(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& selection_bias_E = {});
Routing route_to(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& expert_of_choice_TK);
RoutingStatistics routing_statistics(const Routing& routing, const RouterOptions& options);
void route_backward(at::Tensor grad_logits_TE, const Routing& routing, const RouterOptions& options,
                    const at::Tensor& grad_weight_TK, const at::Tensor& probability_gradient_E, double z_coefficient);
}  // namespace reference

}  // namespace conclave
