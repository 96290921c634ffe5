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
  return static_cast<double>(degree * of_a_rank) / static_cast<double>(top_k);
}

std::vector<RoutedRows> assume_rows(const CheckedJob& job, double imbalance) {
  const int64_t degree = job.layout.degree(Axis::expert), local = job.model.num_local_experts / degree;
  const int64_t tokens = job.tokens_per_rank(), choices = tokens * job.model.num_experts_per_tok;
  RoutedRows rows;
  rows.received = scaled(choices, std::min(imbalance, worst_imbalance(job)));
  rows.received_from_others = rows.received - rows.received / degree;
  rows.sent_to_others = choices - std::min(choices, rows.received / degree);
  rows.largest_expert = std::min({scaled(rows.received / local, imbalance), rows.received, tokens * degree});
  return std::vector<RoutedRows>(static_cast<size_t>(job.model.num_hidden_layers), rows);
}

}  // namespace conclave
