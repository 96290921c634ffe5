#include "data/blend_order.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "base/error.h"

namespace conclave {
namespace {

constexpr int64_t milestone_samples = 512;

std::vector<int64_t> without_common_divisor(std::vector<int64_t> weights) {
  int64_t divisor = 0;
  for (const int64_t weight : weights) divisor = std::gcd(divisor, weight);
  for (int64_t& weight : weights) weight /= divisor;
  return weights;
}

// A positive number as digits x 10^exponent: the shortest decimal number that reads back as it.
struct Decimal {
  int64_t digits = 0;
  int exponent = 0;
};

Decimal decimal_of(double value) {
  std::string shortest = fmt::format("{}", value);
  Decimal decimal;
  const size_t e = shortest.find('e');
  if (e != std::string::npos) {
    decimal.exponent = std::atoi(shortest.c_str() + e + 1);
    shortest.resize(e);
  }
  if (const size_t point = shortest.find('.'); point != std::string::npos) {
    decimal.exponent -= static_cast<int>(shortest.size() - point - 1);
    shortest.erase(point, 1);
  }
  decimal.digits = std::strtoll(shortest.c_str(), nullptr, 10);
  while (decimal.digits % 10 == 0) {
    decimal.digits /= 10;
    ++decimal.exponent;
  }
  return decimal;
}

}  // namespace

BlendOrder::BlendOrder(std::vector<int64_t> weights) {
  check_invariant(!weights.empty() && *std::min_element(weights.begin(), weights.end()) >= 1, "{} weights, all >= 1",
                  weights.size());
  weights_ = without_common_divisor(std::move(weights));
  for (const int64_t weight : weights_) {
    check_invariant(weight <= largest_sum - sum_, "the weights sum to more than {}", largest_sum);
    sum_ += weight;
  }
  milestones_.emplace_back(weights_.size(), 0);
}

// The source of the sample behind `position` samples of a round, of which each source had `counts`.
int64_t BlendOrder::choose(const std::vector<int64_t>& counts, int64_t position) const {
  int64_t best = -1;
  for (size_t s = 0; s < weights_.size(); ++s) {
    // Products of two numbers up to 10^9. Its next sample keeps within its share of position + 1 samples, rounded up:
    if (counts[s] * sum_ >= (position + 1) * weights_[s]) continue;
    // That sample is due when its share has grown to counts + 1.
    if (best < 0 || (counts[s] + 1) * weights_[best] < (counts[best] + 1) * weights_[s]) best = static_cast<int64_t>(s);
  }
  check_invariant(best >= 0, "no source is due at position {} of {}", position, sum_);
  return best;
}

std::vector<int64_t> BlendOrder::counts_in_round(int64_t position) const {
  const std::scoped_lock lock(mutex_);
  const auto milestone = static_cast<size_t>(position / milestone_samples);
  const auto go = [&](std::vector<int64_t>& counts, int64_t from, int64_t to) {
    for (int64_t n = from; n < to; ++n) ++counts[static_cast<size_t>(choose(counts, n))];
  };
  while (milestones_.size() <= milestone) {
    std::vector<int64_t> counts = milestones_.back();
    const int64_t from = static_cast<int64_t>(milestones_.size() - 1) * milestone_samples;
    go(counts, from, from + milestone_samples);
    milestones_.push_back(std::move(counts));
  }
  std::vector<int64_t> counts = milestones_[milestone];
  go(counts, static_cast<int64_t>(milestone) * milestone_samples, position);
  return counts;
}

std::vector<int64_t> BlendOrder::counts_before(int64_t positions) const {
  check_invariant(positions >= 0, "position {}", positions);
  const int64_t rounds = positions / sum_;
  std::vector<int64_t> counts = counts_in_round(positions % sum_);
  for (size_t s = 0; s < counts.size(); ++s) counts[s] += rounds * weights_[s];
  return counts;
}

BlendOrder::Place BlendOrder::at(int64_t position) const {
  check_invariant(position >= 0, "position {}", position);
  const int64_t within = position % sum_;
  const std::vector<int64_t> counts = counts_in_round(within);
  const int64_t source = choose(counts, within);
  const auto s = static_cast<size_t>(source);
  return {source, position / sum_ * weights_[s] + counts[s]};
}

std::vector<int64_t> whole_weights(const std::vector<double>& weights, const char* key) {
  std::vector<Decimal> decimals;
  int lowest = std::numeric_limits<int>::max();
  for (const double weight : weights) {
    if (!std::isfinite(weight) || weight <= 0)
      user_error(
          "{} has a weight of {}, but weights are more than 0.\n       Leave out a source that is not to be read.", key,
          weight);
    decimals.push_back(decimal_of(weight));
    lowest = std::min(lowest, decimals.back().exponent);
  }
  std::vector<int64_t> whole;
  double sum = 0;
  for (const Decimal& decimal : decimals) {
    const double value = static_cast<double>(decimal.digits) * std::pow(10.0, decimal.exponent - lowest);
    whole.push_back(std::llround(std::min(value, 1e18)));  // exact below 2^53, and too large above
  }
  whole = without_common_divisor(std::move(whole));
  for (const int64_t weight : whole) sum += static_cast<double>(weight);
  if (sum > static_cast<double>(BlendOrder::largest_sum))
    user_error(
        "{} has weights ({}) whose ratios take more than nine digits.\n       Round them, for example to six digits.",
        key, fmt::join(weights, ", "));
  return whole;
}

}  // namespace conclave
