// Oracle: counting. After n samples a source of share w has n w of them, up to one.
#include "data/blend_order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "base/error.h"

namespace conclave {
namespace {

using testing::HasSubstr;

// Every position from 0 on, its source's samples in their order, the shares kept at every moment.
void expect_fair(const std::vector<int64_t>& weights, int64_t positions) {
  const BlendOrder order(weights);
  const int64_t sum = std::accumulate(weights.begin(), weights.end(), int64_t{0});
  std::vector<int64_t> counts(weights.size());
  for (int64_t n = 0; n < positions; ++n) {
    const BlendOrder::Place place = order.at(n);
    ASSERT_EQ(place.sample, counts[static_cast<size_t>(place.source)]++) << n;
    for (size_t s = 0; s < weights.size(); ++s) {
      const double share = static_cast<double>(n + 1) * static_cast<double>(weights[s]) / static_cast<double>(sum);
      ASSERT_LT(std::abs(static_cast<double>(counts[s]) - share), 1.0) << "source " << s << " after " << n + 1;
    }
    if (n % 97 == 0) {
      ASSERT_EQ(order.counts_before(n + 1), counts) << n;
    }
  }
}

TEST(BlendOrder, keeps_every_share_within_one_sample_at_any_time) {
  for (const std::vector<int64_t>& weights : {std::vector<int64_t>{1},
                                              {5},
                                              {1, 1},
                                              {7, 3},
                                              {1, 1, 1},
                                              {1, 2, 3, 4},
                                              {999, 1},
                                              {1, 999'999},
                                              {50, 30, 15, 5},
                                              {400, 300, 200, 100},
                                              {333'333, 333'333, 333'334}})
    expect_fair(weights, 5000);
}

TEST(BlendOrder, keeps_random_shares) {
  const uint64_t seed = 20260711;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 40; ++round) {
    std::vector<int64_t> weights(1 + random() % 12);
    const int64_t most = round % 2 == 0 ? 20 : 50'000'000;
    for (int64_t& weight : weights) weight = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(most));
    expect_fair(weights, 3000);
  }
}

// Whoever asks where in whatever order gets the same answer: nothing but the position counts.
TEST(BlendOrder, is_a_function_of_the_position) {
  const std::vector<int64_t> weights = {12'345, 67'891, 3};
  const BlendOrder forward(weights), backward(weights), far(weights);
  std::vector<BlendOrder::Place> places;
  for (int64_t n = 0; n < 3000; ++n) places.push_back(forward.at(n));
  for (int64_t n = 2999; n >= 0; --n) {
    const BlendOrder::Place place = backward.at(n);
    EXPECT_EQ(place.source, places[static_cast<size_t>(n)].source);
    EXPECT_EQ(place.sample, places[static_cast<size_t>(n)].sample);
  }
  // A round of the sum of the weights has each source as often as its weight.
  const int64_t round = 12'345 + 67'891 + 3;
  EXPECT_EQ(far.counts_before(5 * round), (std::vector<int64_t>{5 * 12'345, 5 * 67'891, 15}));
  EXPECT_EQ(far.at(5 * round + 7).sample, places[7].sample + 5 * weights[static_cast<size_t>(places[7].source)]);
}

TEST(WholeWeights, keep_the_ratios_exactly) {
  EXPECT_EQ(whole_weights({0.7, 0.3}, "data.train"), (std::vector<int64_t>{7, 3}));
  EXPECT_EQ(whole_weights({1, 1}, "data.train"), (std::vector<int64_t>{1, 1}));
  EXPECT_EQ(whole_weights({0.5}, "data.train"), (std::vector<int64_t>{1}));
  EXPECT_EQ(whole_weights({2.5, 1e-3, 10}, "data.train"), (std::vector<int64_t>{2500, 1, 10000}));
  EXPECT_EQ(whole_weights({1e12, 3e12}, "data.train"), (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(whole_weights({0.333333, 0.666667}, "data.train"), (std::vector<int64_t>{333333, 666667}));
}

TEST(WholeWeights, refuse_what_is_no_share) {
  const auto refusal = [](const std::vector<double>& weights) -> std::string {
    try {
      whole_weights(weights, "data.train");
    } catch (const UserError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(refusal({1, 0}), HasSubstr("data.train has a weight of 0"));
  EXPECT_THAT(refusal({-1}), HasSubstr("weights are more than 0"));
  EXPECT_THAT(refusal({std::numeric_limits<double>::quiet_NaN()}), HasSubstr("nan"));
  EXPECT_THAT(refusal({1.0 / 3, 1.0 / 7}), HasSubstr("Round them"));
  EXPECT_THAT(refusal({1e300, 1e-300}), HasSubstr("more than nine digits"));
}

}  // namespace
}  // namespace conclave
