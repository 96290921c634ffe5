// Least-loaded expert parallelism: when one rank of an expert group has far more rows than the mean, ranks with few
// rows compute some of them for it, as guests: the expert's weights travel to the helper, and the gradient of the
// weights comes home. Which tokens go to which expert does not change, only where a row is computed. (torchtitan's
// `llep` has the idea; this plan is our own.)
//
// The plan is a pure function of the rows of each expert, which all ranks of the group know, so all make the same one:
// the longest processing time first. As long as it pays, the most loaded rank gives of its largest expert to the least
// loaded rank, until one of the two has the mean. It pays when the rows that move are at least `least_rows`: an expert
// of 3 H I elements travels out twice (forward, backward) in the compute dtype and its gradient home in fp32, 3 H I (2
// b + 4) bytes, and a row saved is 18 H I operations, so the break-even is (2 b + 4) / 6 x operations per second /
// bytes per second: about 50 rows for a CPU core that computes 92 GFLOPS behind a link of 4 GB/s, some 1,500 rows over
// 1 Gbit/s.
#pragma once

#include <cstdint>
#include <vector>

namespace conclave {

struct SpillOptions {
  double threshold = 1.3;  // rows of the busiest rank over the mean of the ranks: above it experts are lent
  int64_t least_rows = 128;
};

struct SpillPlan {
  // Consecutive rows of one expert, in the order of (source rank, source position), and the rank that computes them.
  struct Share {
    int rank = 0;
    int64_t begin = 0;
    int64_t end = 0;
    friend bool operator==(const Share&, const Share&) = default;
  };
  int64_t experts_per_rank = 0;
  // Of each expert. The first share is its own rank's, perhaps without a row; then helpers by rank.
  std::vector<std::vector<Share>> shares_of_expert;

  int home_of(int64_t expert) const { return static_cast<int>(expert / experts_per_rank); }
  // Experts of other ranks that `rank` helps to compute, ascending.
  std::vector<int64_t> guests_of(int rank) const;
  // What `rank` lends, by helper, then ascending: the order in which weights are sent.
  struct Loan {
    int helper = 0;
    int64_t expert = 0;
  };
  std::vector<Loan> loans_of(int rank, int ranks) const;
  bool lends() const;
};

// rows_of_expert: over all ranks of the group, E = ranks x experts of a rank.
SpillPlan plan_spill(const std::vector<int64_t>& rows_of_expert, int ranks, const SpillOptions& options);

}  // namespace conclave
