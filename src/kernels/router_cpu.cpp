// Plain C++: a router's rows are short (E), and its share of a training step is far below one percent.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
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

// The pointers of one token.
struct RouteRow {
  float* score;
  float* logsumexp;
  int32_t* expert;
  float* weight;
};

void score_row(const RouteRow& row, const float* logits, int64_t experts, RouterScores scores) {
  float maximum = -std::numeric_limits<float>::infinity();
  for (int64_t e = 0; e < experts; ++e) maximum = std::max(maximum, logits[e]);
  float sum = 0;
  for (int64_t e = 0; e < experts; ++e) {
    row.score[e] = std::exp(logits[e] - maximum);
    sum += row.score[e];
  }
  *row.logsumexp = maximum + std::log(sum);
  for (int64_t e = 0; e < experts; ++e)
    row.score[e] = scores == RouterScores::softmax ? row.score[e] / sum : 1 / (1 + std::exp(-logits[e]));
}

void weigh_row(const RouteRow& row, const RouterOptions& options) {
  float divisor = 1;
  if (options.renormalize) {
    divisor = 0;
    for (int64_t k = 0; k < options.top_k; ++k) divisor += row.score[row.expert[k]];
  }
  const auto scale = static_cast<float>(options.scale);
  for (int64_t k = 0; k < options.top_k; ++k) row.weight[k] = row.score[row.expert[k]] / divisor * scale;
}

// Chooses the experts of one token after the other; its buffers are used again.
class Chooser {
 public:
  Chooser(const RouterOptions& options, int64_t experts, const float* bias)
      : options_(options), experts_(experts), bias_(bias) {}

  void choose(const RouteRow& row) {
    choosing_.assign(row.score, row.score + experts_);
    if (bias_ != nullptr)
      for (int64_t e = 0; e < experts_; ++e) choosing_[e] += bias_[e];
    taken_.assign(experts_, 0);
    if (options_.top_groups < options_.groups) drop_groups();
    for (int64_t k = 0; k < options_.top_k; ++k) row.expert[k] = take_largest(choosing_.data(), taken_);
  }

 private:
  // Experts of groups that are not among the best count as taken.
  void drop_groups() {
    const int64_t size = experts_ / options_.groups;
    group_score_.resize(options_.groups);
    for (int64_t g = 0; g < options_.groups; ++g) {
      group_taken_.assign(size, 0);
      const float* group = choosing_.data() + g * size;
      group_score_[g] = group[take_largest(group, group_taken_)];
      if (size > 1 && options_.best_of_group > 1) group_score_[g] += group[take_largest(group, group_taken_)];
    }
    group_taken_.assign(options_.groups, 0);
    for (int64_t kept = 0; kept < options_.top_groups; ++kept) take_largest(group_score_.data(), group_taken_);
    for (int64_t e = 0; e < experts_; ++e) taken_[e] = group_taken_[e / size] == 0 ? 1 : 0;
  }

  const RouterOptions& options_;
  int64_t experts_;
  const float* bias_;
  std::vector<float> choosing_, group_score_;
  std::vector<char> taken_, group_taken_;
};

// Adds what the gradient of a token's probabilities gives its scores.
void add_probability_gradient(std::vector<float>& grad_score, const float* score, const float* grad, bool is_softmax) {
  const size_t experts = grad_score.size();
  float sum = 1, dot = 0;
  if (!is_softmax) {
    sum = std::accumulate(score, score + experts, 0.0f);
    for (size_t e = 0; e < experts; ++e) dot += grad[e] * score[e] / sum;
  }
  for (size_t e = 0; e < experts; ++e) grad_score[e] += (grad[e] - dot) / sum;
}

constexpr int64_t statistics_block = 512;  // tokens summed before blocks are added

}  // namespace

namespace {

// make_choose() gives, for each range of rows, what fills a row's experts (or leaves them, when they are there).
template <class MakeChoose>
Routing route_rows(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& expert_of_choice_TK,
                   const MakeChoose& make_choose) {
  const at::Tensor logits = logits_TE.to(at::kFloat);
  const int64_t tokens = logits.size(0), experts = logits.size(1), top_k = options.top_k;
  const auto fp32 = at::TensorOptions().dtype(at::kFloat);
  Routing routing{at::empty({tokens, experts}, fp32), at::empty({tokens}, fp32), expert_of_choice_TK,
                  at::empty({tokens, top_k}, fp32)};
  cpu::for_rows(tokens, experts * top_k, [&](int64_t begin, int64_t end) {
    auto choose = make_choose();
    for (int64_t t = begin; t < end; ++t) {
      const RouteRow row{cpu::data<float>(routing.score_TE) + t * experts, cpu::data<float>(routing.logsumexp_T) + t,
                         cpu::data<int32_t>(routing.expert_of_choice_TK) + t * top_k,
                         cpu::data<float>(routing.weight_TK) + t * top_k};
      score_row(row, cpu::data<float>(logits) + t * experts, experts, options.scores);
      choose(row);
      weigh_row(row, options);
    }
  });
  return routing;
}

}  // namespace

Routing cpu::route(const at::Tensor& logits_TE, const RouterOptions& options, const at::Tensor& selection_bias_E) {
  const float* bias = selection_bias_E.defined() ? data<float>(selection_bias_E) : nullptr;
  const at::Tensor experts = at::empty({logits_TE.size(0), options.top_k}, at::TensorOptions().dtype(at::kInt));
  return route_rows(logits_TE, options, experts, [&] {
    return [chooser = Chooser(options, logits_TE.size(1), bias)](const RouteRow& row) mutable { chooser.choose(row); };
  });
}

Routing cpu::route_to(const at::Tensor& logits_TE, const RouterOptions& options,
                      const at::Tensor& expert_of_choice_TK) {
  return route_rows(logits_TE, options, expert_of_choice_TK, [] { return [](const RouteRow&) {}; });
}

RoutingStatistics cpu::routing_statistics(const Routing& routing, const RouterOptions& options) {
  const int64_t tokens = routing.score_TE.size(0), experts = routing.score_TE.size(1);
  const auto fp64 = at::TensorOptions().dtype(at::kDouble);
  RoutingStatistics statistics{at::zeros({experts}, fp64), at::zeros({experts}, fp64), at::zeros({}, fp64),
                               at::zeros({}, fp64)};
  auto* count = statistics.count_E.data_ptr<double>();
  const int32_t* expert = data<int32_t>(routing.expert_of_choice_TK);
  for (int64_t choice = 0; choice < routing.expert_of_choice_TK.numel(); ++choice) {
    check_invariant(expert[choice] >= 0 && expert[choice] < experts, "routing_statistics: expert {} of {}",
                    expert[choice], experts);
    count[expert[choice]] += 1;
  }

  // Row b: the probabilities' sums over block b, then the sums of logsumexp^2 and of the highest probability.
  const int64_t blocks = (tokens + statistics_block - 1) / statistics_block, columns = experts + 2;
  const at::Tensor partial = at::zeros({blocks, columns}, fp64);
  for_rows(blocks, statistics_block * experts, [&](int64_t first, int64_t last) {
    for (int64_t t = first * statistics_block; t < std::min(tokens, last * statistics_block); ++t) {
      double* sum = data<double>(partial) + t / statistics_block * columns;
      const float* score = data<float>(routing.score_TE) + t * experts;
      double divisor = 1;
      if (options.scores == RouterScores::sigmoid) divisor = std::accumulate(score, score + experts, 0.0);
      for (int64_t e = 0; e < experts; ++e) sum[e] += score[e] / divisor;
      const double logsumexp = data<float>(routing.logsumexp_T)[t];
      sum[experts] += logsumexp * logsumexp;
      sum[experts + 1] += *std::max_element(score, score + experts) / divisor;
    }
  });
  for (int64_t b = 0; b < blocks; ++b) {
    const double* sum = data<double>(partial) + b * columns;
    for (int64_t e = 0; e < experts; ++e) data<double>(statistics.probability_sum_E)[e] += sum[e];
    *data<double>(statistics.logsumexp_square_sum) += sum[experts];
    *data<double>(statistics.confidence_sum) += sum[experts + 1];
  }
  return statistics;
}

// The formulas are the reference's.
void cpu::route_backward(at::Tensor grad_logits_TE, const Routing& routing, const RouterOptions& options,
                         const at::Tensor& grad_weight_TK, const at::Tensor& probability_gradient_E,
                         double z_coefficient) {
  const int64_t tokens = routing.score_TE.size(0), experts = routing.score_TE.size(1), top_k = options.top_k;
  const bool is_softmax = options.scores == RouterScores::softmax;
  const auto scale = static_cast<float>(options.scale);
  const float* same_for_all = probability_gradient_E.defined() ? data<float>(probability_gradient_E) : nullptr;
  const at::ScalarType dtype = grad_logits_TE.scalar_type();
  const at::Tensor grad_logits =
      dtype == at::kFloat ? grad_logits_TE : at::empty(grad_logits_TE.sizes(), at::TensorOptions().dtype(at::kFloat));
  for_rows(tokens, experts * top_k, [&](int64_t begin, int64_t end) {
    std::vector<float> grad_score(experts);
    for (int64_t t = begin; t < end; ++t) {
      const float* score = data<float>(routing.score_TE) + t * experts;
      const int32_t* expert = data<int32_t>(routing.expert_of_choice_TK) + t * top_k;
      const float* weight = data<float>(routing.weight_TK) + t * top_k;
      const float* grad_weight = data<float>(grad_weight_TK) + t * top_k;
      std::fill(grad_score.begin(), grad_score.end(), 0.0f);
      if (same_for_all != nullptr) add_probability_gradient(grad_score, score, same_for_all, is_softmax);
      float chosen_sum = 1, mean_grad = 0;
      if (options.renormalize) {
        chosen_sum = 0;
        for (int64_t k = 0; k < top_k; ++k) {
          chosen_sum += score[expert[k]];
          mean_grad += grad_weight[k] * weight[k];
        }
      }
      for (int64_t k = 0; k < top_k; ++k) grad_score[expert[k]] += (grad_weight[k] * scale - mean_grad) / chosen_sum;
      float* out = data<float>(grad_logits) + t * experts;
      if (!is_softmax) {
        for (int64_t e = 0; e < experts; ++e) out[e] = grad_score[e] * score[e] * (1 - score[e]);
        continue;
      }
      float dot = 0;
      for (int64_t e = 0; e < experts; ++e) dot += grad_score[e] * score[e];
      const float through_logsumexp = static_cast<float>(2 * z_coefficient) * data<float>(routing.logsumexp_T)[t];
      for (int64_t e = 0; e < experts; ++e) out[e] = score[e] * (grad_score[e] - dot + through_logsumexp);
    }
  });
  if (dtype != at::kFloat) grad_logits_TE.copy_(grad_logits);
}

}  // namespace conclave
