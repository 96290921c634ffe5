#include "planner/routed_rows.h"

#include <algorithm>
#include <cmath>

namespace conclave {
namespace {

int64_t scaled(int64_t rows, double factor) {
  return static_cast<int64_t>(std::llround(static_cast<double>(rows) * factor));
}

}  // namespace

double worst_imbalance(const CheckedJob& job) {
  const int64_t degree = job.layout.degree(Axis::expert), top_k = job.model.num_experts_per_tok;
  const int64_t of_a_rank = std::min(top_k, job.model.num_local_experts / degree);
  const double worst = static_cast<double>(degree * of_a_rank) / static_cast<double>(top_k);
  return job.job.moe.overload == OverloadPolicy::spill ? std::min(worst, job.job.moe.spill_threshold) : worst;
}

std::vector<RoutedRows> assume_rows(const CheckedJob& job, double imbalance) {
  const int64_t degree = job.layout.degree(Axis::expert), local = job.model.num_local_experts / degree;
  const int64_t tokens = job.tokens_per_rank(), choices = tokens * job.model.num_experts_per_tok;
  RoutedRows rows;
  rows.sent = choices;
  rows.received = scaled(choices, std::min(imbalance, worst_imbalance(job)));
  if (const auto factor = job.job.moe.capacity_factor) {
    const double capacity = *factor * static_cast<double>(choices) * job.layout.world_size() /
                            static_cast<double>(job.model.num_local_experts);
    imbalance = std::min(imbalance, *factor);
    rows.received = std::min(rows.received, local * static_cast<int64_t>(std::ceil(capacity)));
  }
  rows.received_from_others = rows.received - rows.received / degree;
  rows.sent_to_others = choices - std::min(choices, rows.received / degree);
  rows.largest_expert = std::min({scaled(rows.received / local, imbalance), rows.received, tokens * degree});
  return std::vector<RoutedRows>(static_cast<size_t>(job.model.num_hidden_layers), rows);
}

bool parts_overlap(const CheckedJob& job) {
  return job.layout.degree(Axis::expert) > 1 && job.job.moe.overload != OverloadPolicy::chunk &&
         job.job.moe.dispatch_chunks.value_or(1) > 1;
}

std::vector<RoutedRows> parts_of(const CheckedJob& job, const RoutedRows& rows) {
  const MoeConfig& moe = job.job.moe;
  const bool travels = job.layout.degree(Axis::expert) > 1;
  int64_t parts = travels ? moe.dispatch_chunks.value_or(1) : 1;
  if (moe.overload == OverloadPolicy::chunk && travels) {
    const auto mean = static_cast<double>(job.tokens_per_rank() * job.model.num_experts_per_tok);
    parts = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(static_cast<double>(rows.received) /
                                                                (moe.max_tokens_per_rank_factor * mean))));
  }
  std::vector<RoutedRows> result;
  for (int64_t part = 0; part < parts; ++part) {
    const auto share = [&](int64_t of_all) { return of_all * (part + 1) / parts - of_all * part / parts; };
    result.push_back({share(rows.sent), share(rows.received), share(rows.received_from_others),
                      share(rows.sent_to_others), share(rows.largest_expert)});
  }
  return result;
}

}  // namespace conclave
