#include "moe/spill_plan.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "base/error.h"

namespace conclave {
namespace {

// Rows that stay at home, and those that helpers take, by expert.
struct Division {
  std::vector<int64_t> at_home;
  std::vector<std::map<int, int64_t>> lent;  // by helper
};

Division divide(const std::vector<int64_t>& rows_of_expert, int ranks, const SpillOptions& options) {
  const auto experts = static_cast<int64_t>(rows_of_expert.size()), local = experts / ranks;
  Division division{rows_of_expert, std::vector<std::map<int, int64_t>>(rows_of_expert.size())};
  std::vector<int64_t> load(static_cast<size_t>(ranks));
  for (int64_t expert = 0; expert < experts; ++expert) load[expert / local] += rows_of_expert[expert];
  const int64_t total = std::accumulate(load.begin(), load.end(), int64_t{0});
  const auto hottest = [&] { return std::max_element(load.begin(), load.end()) - load.begin(); };
  const auto coldest = [&] { return std::min_element(load.begin(), load.end()) - load.begin(); };
  if (static_cast<double>(load[hottest()]) * ranks <= options.threshold * static_cast<double>(total)) return division;

  const int64_t mean = (total + ranks - 1) / ranks;
  while (true) {
    const int64_t hot = hottest(), cold = coldest();
    const auto own = division.at_home.begin() + hot * local;
    const auto largest = std::max_element(own, own + local);
    const int64_t rows = std::min({load[hot] - mean, mean - load[cold], *largest});
    if (rows < options.least_rows) return division;
    *largest -= rows;
    division.lent[largest - division.at_home.begin()][static_cast<int>(cold)] += rows;
    load[hot] -= rows;
    load[cold] += rows;
  }
}

}  // namespace

SpillPlan plan_spill(const std::vector<int64_t>& rows_of_expert, int ranks, const SpillOptions& options) {
  const auto experts = static_cast<int64_t>(rows_of_expert.size());
  check_invariant(options.least_rows >= 1 && experts % ranks == 0, "{} experts on {} ranks, at least {} rows lent",
                  experts, ranks, options.least_rows);
  const Division division = divide(rows_of_expert, ranks, options);
  SpillPlan plan{experts / ranks, std::vector<std::vector<SpillPlan::Share>>(rows_of_expert.size())};
  for (int64_t expert = 0; expert < experts; ++expert) {
    auto& shares = plan.shares_of_expert[expert];
    int64_t begin = division.at_home[expert];
    shares.push_back({plan.home_of(expert), 0, begin});
    for (const auto& [helper, rows] : division.lent[expert]) {
      shares.push_back({helper, begin, begin + rows});
      begin += rows;
    }
  }
  return plan;
}

std::vector<int64_t> SpillPlan::guests_of(int rank) const {
  std::vector<int64_t> guests;
  for (size_t expert = 0; expert < shares_of_expert.size(); ++expert)
    for (size_t i = 1; i < shares_of_expert[expert].size(); ++i)
      if (shares_of_expert[expert][i].rank == rank) guests.push_back(static_cast<int64_t>(expert));
  return guests;
}

std::vector<SpillPlan::Loan> SpillPlan::loans_of(int rank, int ranks) const {
  std::vector<Loan> loans;
  for (int helper = 0; helper < ranks; ++helper)
    for (int64_t expert = rank * experts_per_rank; expert < (rank + 1) * experts_per_rank; ++expert)
      for (size_t i = 1; i < shares_of_expert[expert].size(); ++i)
        if (shares_of_expert[expert][i].rank == helper) loans.push_back({helper, expert});
  return loans;
}

bool SpillPlan::lends() const {
  return std::any_of(shares_of_expert.begin(), shares_of_expert.end(),
                     [](const auto& shares) { return shares.size() > 1; });
}

}  // namespace conclave
