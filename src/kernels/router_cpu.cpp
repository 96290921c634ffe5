// Plain C++: a router's rows are short (E), and its share of a training step is far below one percent.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "kernels/cpu.h"
#include "kernels/router.h"

namespace conclave {

namespace {

// The index of the largest entry not taken yet, the lowest of equals. Entries that are not a number come last, yet each
// is taken once.
int32_t take_largest(const float* value, std::vector<char>& taken) {
  int32_t best = -1;
  for (size_t e = 0; e < taken.size(); ++e) {
    if (!taken[e] && (best < 0 || value[e] > value[best] || std::isnan(value[best]))) best = static_cast<int32_t>(e);
  }
  taken[best] = 1;
  return best;
}

struct RouteRow {
  float* probability;
  float* logsumexp;
  int32_t* expert;
  float* weight;
};

void route_row(RouteRow out, const float* logits, int64_t experts, int64_t top_k, std::vector<char>& taken) {
  float maximum = -std::numeric_limits<float>::infinity();
  for (int64_t e = 0; e < experts; ++e) maximum = std::max(maximum, logits[e]);
  float sum = 0;
  for (int64_t e = 0; e < experts; ++e) {
    out.probability[e] = std::exp(logits[e] - maximum);
    sum += out.probability[e];
  }
  for (int64_t e = 0; e < experts; ++e) out.probability[e] /= sum;
  *out.logsumexp = maximum + std::log(sum);

  taken.assign(experts, 0);
  float chosen_sum = 0;
  for (int64_t k = 0; k < top_k; ++k) {
    out.expert[k] = take_largest(out.probability, taken);
    chosen_sum += out.probability[out.expert[k]];
  }
  for (int64_t k = 0; k < top_k; ++k) out.weight[k] = out.probability[out.expert[k]] / chosen_sum;
}

constexpr int64_t statistics_block = 512;  // tokens summed before blocks are added

}  // namespace

Routing cpu::route(const at::Tensor& logits_TE, int64_t top_k) {
  const at::Tensor logits = logits_TE.to(at::kFloat);
  const int64_t tokens = logits.size(0), experts = logits.size(1);
  const auto fp32 = at::TensorOptions().dtype(at::kFloat);
  const Routing routing{at::empty({tokens, experts}, fp32), at::empty({tokens}, fp32),
                        at::empty({tokens, top_k}, at::TensorOptions().dtype(at::kInt)),
                        at::empty({tokens, top_k}, fp32)};
  for_rows(tokens, experts * top_k, [&](int64_t begin, int64_t end) {
    std::vector<char> taken;
    for (int64_t t = begin; t < end; ++t) {
      route_row({data<float>(routing.probability_TE) + t * experts, data<float>(routing.logsumexp_T) + t,
                 data<int32_t>(routing.expert_of_choice_TK) + t * top_k, data<float>(routing.weight_TK) + t * top_k},
                data<float>(logits) + t * experts, experts, top_k, taken);
    }
  });
  return routing;
}

RoutingStatistics cpu::routing_statistics(const Routing& routing) {
  const int64_t tokens = routing.probability_TE.size(0), experts = routing.probability_TE.size(1);
  const auto fp64 = at::TensorOptions().dtype(at::kDouble);
  RoutingStatistics statistics{at::zeros({experts}, fp64), at::zeros({experts}, fp64), 0};
  double* count = statistics.count_E.data_ptr<double>();
  const int32_t* expert = data<int32_t>(routing.expert_of_choice_TK);
  for (int64_t choice = 0; choice < routing.expert_of_choice_TK.numel(); ++choice) {
    check_invariant(expert[choice] >= 0 && expert[choice] < experts, "routing_statistics: expert {} of {}",
                    expert[choice], experts);
    count[expert[choice]] += 1;
  }

  // Row b: the probabilities' sums over block b, then the sum of logsumexp^2.
  const int64_t blocks = (tokens + statistics_block - 1) / statistics_block, columns = experts + 1;
  const at::Tensor partial = at::zeros({blocks, columns}, fp64);
  for_rows(blocks, statistics_block * experts, [&](int64_t first, int64_t last) {
    for (int64_t t = first * statistics_block; t < std::min(tokens, last * statistics_block); ++t) {
      double* sum = data<double>(partial) + t / statistics_block * columns;
      const float* probability = data<float>(routing.probability_TE) + t * experts;
      for (int64_t e = 0; e < experts; ++e) sum[e] += probability[e];
      const double logsumexp = data<float>(routing.logsumexp_T)[t];
      sum[experts] += logsumexp * logsumexp;
    }
  });
  for (int64_t b = 0; b < blocks; ++b) {
    const double* sum = data<double>(partial) + b * columns;
    for (int64_t e = 0; e < experts; ++e) data<double>(statistics.probability_sum_E)[e] += sum[e];
    statistics.logsumexp_square_sum += sum[experts];
  }
  return statistics;
}

// The formulas are the reference's.
void cpu::route_backward(at::Tensor grad_logits_TE, const Routing& routing, const at::Tensor& grad_weight_TK,
                         const at::Tensor& probability_gradient_E, double z_coefficient) {
  const int64_t tokens = routing.probability_TE.size(0), experts = routing.probability_TE.size(1);
  const int64_t top_k = routing.expert_of_choice_TK.size(1);
  const float* same_for_all = probability_gradient_E.defined() ? data<float>(probability_gradient_E) : nullptr;
  const at::ScalarType dtype = grad_logits_TE.scalar_type();
  const at::Tensor grad_logits =
      dtype == at::kFloat ? grad_logits_TE : at::empty(grad_logits_TE.sizes(), at::TensorOptions().dtype(at::kFloat));
  for_rows(tokens, experts * top_k, [&](int64_t begin, int64_t end) {
    std::vector<float> grad_probability(experts);
    for (int64_t t = begin; t < end; ++t) {
      const float* probability = data<float>(routing.probability_TE) + t * experts;
      const int32_t* expert = data<int32_t>(routing.expert_of_choice_TK) + t * top_k;
      const float* weight = data<float>(routing.weight_TK) + t * top_k;
      const float* grad_weight = data<float>(grad_weight_TK) + t * top_k;
      for (int64_t e = 0; e < experts; ++e) grad_probability[e] = same_for_all == nullptr ? 0 : same_for_all[e];
      float chosen_sum = 0, mean_grad = 0;
      for (int64_t k = 0; k < top_k; ++k) {
        chosen_sum += probability[expert[k]];
        mean_grad += grad_weight[k] * weight[k];
      }
      for (int64_t k = 0; k < top_k; ++k) grad_probability[expert[k]] += (grad_weight[k] - mean_grad) / chosen_sum;
      float dot = 0;
      for (int64_t e = 0; e < experts; ++e) dot += grad_probability[e] * probability[e];
      const float through_logsumexp = static_cast<float>(2 * z_coefficient) * data<float>(routing.logsumexp_T)[t];
      float* out = data<float>(grad_logits) + t * experts;
      for (int64_t e = 0; e < experts; ++e) {
        out[e] = probability[e] * (grad_probability[e] - dot + through_logsumexp);
      }
    }
  });
  if (dtype != at::kFloat) grad_logits_TE.copy_(grad_logits);
}

}  // namespace conclave
