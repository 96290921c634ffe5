// Rows, weights and gradients of some experts, in bf16, for tests of ways to compute them.
#pragma once

#include <ATen/ATen.h>

#include <numeric>
#include <vector>

#include "moe/experts.h"
#include "unit/moe/plain_experts.h"

namespace conclave::testing {

struct ExpertCase {
  ExpertRows rows;
  ExpertWeights weights;
  at::Tensor grad_RH;
};

// `deviation`: of the weights.
inline ExpertCase make_expert_case(const std::vector<int64_t>& rows_per_expert, int64_t hidden, int64_t intermediate,
                                   double deviation) {
  at::manual_seed(seed);
  const auto experts = static_cast<int64_t>(rows_per_expert.size());
  const int64_t rows = std::accumulate(rows_per_expert.begin(), rows_per_expert.end(), int64_t{0});
  const auto normal = [](at::IntArrayRef sizes) { return at::randn(sizes).to(at::kBFloat16); };
  return {
      {normal({rows, hidden}), at::rand({rows})},
      {normal({experts, 2 * intermediate, hidden}) * deviation, normal({experts, hidden, intermediate}) * deviation},
      normal({rows, hidden})};
}

}  // namespace conclave::testing
