// How many rows routing brings to whom: nobody knows before a run, so a plan assumes it.
#pragma once

#include "mesh/checked_job.h"
#include "moe/choices.h"

namespace conclave {

// All layers alike. `imbalance`: rows of the experts of `rank`, over the mean of its expert group; its largest expert
// has the same factor over the mean of its experts. Both end at the most there can be (most_imbalance()). 1: even. The
// rest is even, and all ranks of the group send alike. What is lent of them, the engine decides.
class AssumedRouting final : public AssumedChoices {
 public:
  AssumedRouting(const CheckedJob& job, int rank, double imbalance);
  std::shared_ptr<const RowsBySource> of_layer(int64_t) const override { return rows_; }

 private:
  std::shared_ptr<const RowsBySource> rows_;
};

// What was counted, layer by layer.
class CountedRouting final : public AssumedChoices {
 public:
  explicit CountedRouting(std::vector<RowsBySource> layers);
  std::shared_ptr<const RowsBySource> of_layer(int64_t layer) const override {
    return layers_.at(static_cast<size_t>(layer));
  }

 private:
  std::vector<std::shared_ptr<const RowsBySource>> layers_;
};

// The rows of a rank's experts when every token of its expert group chooses as many of them as it can, over the mean. 1
// when the expert degree is 1: each rank then computes its own tokens' rows, whatever the routing.
double most_imbalance(const CheckedJob& job);
// Of what a rank computes without the help of others: with overload: spill at most the threshold of spilling, as far as
// moe.spill_least_rows allows it.
double worst_imbalance(const CheckedJob& job);

}  // namespace conclave
