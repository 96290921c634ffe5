#include "planner/assumed_routing.h"

#include <algorithm>
#include <cmath>

namespace conclave {
namespace {

int64_t scaled(int64_t rows, double factor) {
  return static_cast<int64_t>(std::llround(static_cast<double>(rows) * factor));
}

// Part `i` of `rows` in equal `parts`.
int64_t share(int64_t rows, int64_t i, int64_t parts) {
  return rows * (i + 1) / parts - rows * i / parts;
}

}  // namespace

double most_imbalance(const CheckedJob& job) {
  const int64_t degree = job.layout.degree(Axis::expert), top_k = job.model.top_k();
  if (top_k == 0) return 1;  // a dense model
  const int64_t of_a_rank = std::min(top_k, job.model.experts() / degree);
  return static_cast<double>(degree * of_a_rank) / static_cast<double>(top_k);
}

double worst_imbalance(const CheckedJob& job) {
  const double worst = most_imbalance(job);
  return job.job.moe.overload == OverloadPolicy::spill ? std::min(worst, job.job.moe.spill_threshold) : worst;
}

AssumedRouting::AssumedRouting(const CheckedJob& job, int rank, double imbalance) {
  if (job.model.mixture() == nullptr) return;
  const int64_t degree = job.layout.degree(Axis::expert), experts = job.model.experts();
  const int64_t local = experts / degree, own = job.layout.index(Axis::expert, rank) * local;
  const int64_t tokens = job.tokens_per_rank(), choices = tokens * job.model.top_k();
  int64_t most = tokens * degree;  // rows of an expert
  int64_t received = scaled(choices, std::min(imbalance, most_imbalance(job)));
  if (const auto factor = job.job.moe.capacity_factor) {
    most = std::min(most, static_cast<int64_t>(std::ceil(*factor * static_cast<double>(choices * degree) /
                                                         static_cast<double>(experts))));
    imbalance = std::min(imbalance, *factor);
    received = std::min(received, local * most);
  }
  const int64_t largest = std::min({scaled(received / local, imbalance), received, most});

  // Of each expert, all sources together.
  std::vector<int64_t> total(static_cast<size_t>(experts));
  for (int64_t expert = 0; expert < experts; ++expert) {
    const int64_t place = expert - own;
    if (place < 0 || place >= local)
      total[expert] = std::min(most, share(choices * degree - received, place < 0 ? expert : expert - local,
                                           std::max<int64_t>(1, experts - local)));
    else
      total[expert] = local == 1 ? received : place == 0 ? largest : share(received - largest, place - 1, local - 1);
  }
  RowsBySource rows(static_cast<size_t>(degree), std::vector<int64_t>(total.size()));
  for (int64_t source = 0; source < degree; ++source)
    for (int64_t expert = 0; expert < experts; ++expert)
      rows[source][expert] = share(total[expert], (source + expert) % degree, degree);
  rows_ = std::make_shared<const RowsBySource>(std::move(rows));
}

CountedRouting::CountedRouting(std::vector<RowsBySource> layers) {
  for (RowsBySource& rows : layers) layers_.push_back(std::make_shared<const RowsBySource>(std::move(rows)));
}

}  // namespace conclave
