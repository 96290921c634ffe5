// In which order the samples of several sources follow one another when each has a share of them: a pure function of
// the shares and the position, so that one integer says where a run stands.
//
// The quota method of Balinski and Young, "The Quota Method of Apportionment" (1975): of the sources that stay within
// their share rounded up, the one whose next sample is due first goes next. So after any number n of samples a source
// of share w has had between floor(n w) and ceil(n w) of them.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

namespace conclave {

class BlendOrder {
 public:
  // `weights`: whole numbers of at least 1, whose sum is at most `largest_sum`; a source's share is its weight over
  // their sum.
  explicit BlendOrder(std::vector<int64_t> weights);
  static constexpr int64_t largest_sum = 1'000'000'000;

  struct Place {
    int64_t source = 0;
    int64_t sample = 0;  // of the source: how many of it came before
  };
  // What stands at a position >= 0. Any thread may ask. The first question about a late position costs time for what
  // comes before it in a round of as many samples as the sum of the weights, the later ones little.
  Place at(int64_t position) const;
  // How many of the first `positions` samples each source has.
  std::vector<int64_t> counts_before(int64_t positions) const;

 private:
  int64_t choose(const std::vector<int64_t>& counts, int64_t position) const;
  std::vector<int64_t> counts_in_round(int64_t position) const;

  std::vector<int64_t> weights_;  // without a common divisor
  int64_t sum_ = 0;               // the order repeats itself after so many samples
  mutable std::mutex mutex_;      // guards what follows
  mutable std::vector<std::vector<int64_t>>
      milestones_;  // the counts before every so many samples, as far as was asked
};

// Weights of any size as whole numbers of the same ratios. UserError, with `key` in front, when they are not positive
// or their ratios take more digits than BlendOrder has room for.
std::vector<int64_t> whole_weights(const std::vector<double>& weights, const char* key);

}  // namespace conclave
