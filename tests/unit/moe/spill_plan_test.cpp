// Which experts are lent to whom. Oracle: what the header promises, checked of the plan itself, and for the balance the
// bounds that users are told.
#include "moe/spill_plan.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

namespace conclave {
namespace {

// Rows of the most loaded rank over the mean of the ranks; 1 when there are no rows.
double rank_imbalance(const SpillPlan& plan, int ranks) {
  std::vector<int64_t> load(static_cast<size_t>(ranks));
  for (const auto& shares : plan.shares_of_expert)
    for (const SpillPlan::Share& share : shares) load[share.rank] += share.end - share.begin;
  const int64_t total = std::accumulate(load.begin(), load.end(), int64_t{0});
  if (total == 0) return 1;
  return static_cast<double>(*std::max_element(load.begin(), load.end())) * ranks / static_cast<double>(total);
}

constexpr uint64_t seed = 11;

// Rows of the experts are divided among ranks without a gap; nobody borrows its own.
void expect_division(const SpillPlan& plan, const std::vector<int64_t>& rows_of_expert, int ranks, int64_t least) {
  ASSERT_EQ(plan.shares_of_expert.size(), rows_of_expert.size());
  for (size_t expert = 0; expert < rows_of_expert.size(); ++expert) {
    const auto& shares = plan.shares_of_expert[expert];
    int64_t end = 0;
    for (size_t i = 0; i < shares.size(); ++i) {
      EXPECT_EQ(shares[i].begin, end);
      end = shares[i].end;
      if (i == 0) {
        EXPECT_EQ(shares[i].rank, plan.home_of(static_cast<int64_t>(expert)));
      } else {
        EXPECT_NE(shares[i].rank, shares[0].rank);
        EXPECT_GE(shares[i].end - shares[i].begin, least);
      }
    }
    EXPECT_EQ(end, rows_of_expert[expert]);
  }
  size_t guests = 0, loans = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    guests += plan.guests_of(rank).size();
    loans += plan.loans_of(rank, ranks).size();
  }
  EXPECT_EQ(guests, loans);
  EXPECT_EQ(plan.lends(), loans > 0);
}

std::vector<int64_t> zipf(int64_t experts, int64_t rows, double exponent) {
  std::vector<double> share;
  for (int64_t rank = 1; rank <= experts; ++rank) share.push_back(std::pow(static_cast<double>(rank), -exponent));
  const double sum = std::accumulate(share.begin(), share.end(), 0.0);
  std::vector<int64_t> result;
  for (const double one : share)
    result.push_back(static_cast<int64_t>(std::lround(one / sum * static_cast<double>(rows))));
  return result;
}

TEST(SpillPlan, levels_all_tokens_to_one_expert) {
  for (const int ranks : {2, 4, 8})
    for (const int64_t experts : {8, 64}) {
      std::vector<int64_t> rows(static_cast<size_t>(experts), 0);
      rows[experts - 1] = 8192;
      const SpillPlan plan = plan_spill(rows, ranks, {});
      expect_division(plan, rows, ranks, SpillOptions{}.least_rows);
      EXPECT_DOUBLE_EQ(rank_imbalance(plan, ranks), 1.0) << ranks;
      EXPECT_EQ(plan.shares_of_expert[experts - 1].size(), static_cast<size_t>(ranks));
    }
}

TEST(SpillPlan, levels_a_zipf_load_over_64_experts) {
  constexpr int ranks = 4;
  for (const double exponent : {0.8, 1.0, 1.5}) {
    const std::vector<int64_t> rows = zipf(64, 4 * 2048 * 2, exponent);
    const double before = rank_imbalance(plan_spill(rows, ranks, {.threshold = 1e9}), ranks);
    const SpillPlan plan = plan_spill(rows, ranks, {});
    expect_division(plan, rows, ranks, SpillOptions{}.least_rows);
    EXPECT_GT(before, 1.9) << exponent;
    EXPECT_LE(rank_imbalance(plan, ranks), 1.15) << exponent;
  }
}

TEST(SpillPlan, lends_nothing_below_the_threshold_or_for_few_rows) {
  const std::vector<int64_t> uneven = {600, 600, 500, 500, 450, 450, 450, 450};  // 1200 of a mean of 1000
  EXPECT_FALSE(plan_spill(uneven, 4, {.threshold = 1.2, .least_rows = 1}).lends());
  EXPECT_TRUE(plan_spill(uneven, 4, {.threshold = 1.19, .least_rows = 1}).lends());
  const std::vector<int64_t> few = {300, 0, 0, 0};  // 225 above the mean, 75 for each helper
  EXPECT_FALSE(plan_spill(few, 4, {.least_rows = 76}).lends());
  EXPECT_TRUE(plan_spill(few, 4, {.least_rows = 75}).lends());
  EXPECT_FALSE(plan_spill({0, 0, 0, 0}, 2, {}).lends());
  EXPECT_FALSE(plan_spill({900, 5}, 1, {.least_rows = 1}).lends()) << "a rank alone";
}

TEST(SpillPlan, divides_any_load) {
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; ++round) {
    const int ranks = 1 + static_cast<int>(random() % 8);
    std::vector<int64_t> rows(static_cast<size_t>(ranks * (1 + random() % 9)));
    for (int64_t& of : rows) of = static_cast<int64_t>(random() % 3 == 0 ? random() % 1000 : random() % 10);
    const int64_t least = 1 + static_cast<int64_t>(random() % 40);
    SCOPED_TRACE(fmt::format("seed {}, round {}", seed, round));
    const SpillPlan plan = plan_spill(rows, ranks, {.threshold = 1.1, .least_rows = least});
    expect_division(plan, rows, ranks, least);
    EXPECT_LE(rank_imbalance(plan, ranks), rank_imbalance(plan_spill(rows, ranks, {.threshold = 1e9}), ranks));
    EXPECT_EQ(plan.shares_of_expert, plan_spill(rows, ranks, {.threshold = 1.1, .least_rows = least}).shares_of_expert);
  }
}

}  // namespace
}  // namespace conclave
