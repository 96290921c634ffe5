#include "planner/rank_loads.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <tuple>

#include "device/device.h"
#include "moe/capacity.h"
#include "moe/dispatch_settings.h"

namespace conclave {
namespace {

// Of one rank, in one layer or several.
struct Load {
  int64_t rows = 0;     // that it computes
  int64_t largest = 0;  // of one expert
  int64_t guests = 0;   // experts of other ranks

  auto by_rows() const { return std::make_tuple(rows, largest, guests); }
  auto by_guests() const { return std::make_tuple(guests, rows, largest); }
  void add(const Load& other) {
    rows += other.rows;
    largest = std::max(largest, other.largest);
    guests += other.guests;
  }
};

// Of an expert group in one layer.
struct GroupLoad {
  std::vector<Load> of_rank;
  double imbalance = 1;  // before lending
  int64_t lent = 0, rows = 0;
};

GroupLoad load_of(const RowsBySource& world, int first, int degree, const std::optional<SpillOptions>& spill) {
  const size_t experts = world[0].size();
  const auto local = static_cast<int64_t>(experts) / degree;
  std::vector<int64_t> total(experts);
  for (int source = first; source < first + degree; ++source)
    for (size_t expert = 0; expert < experts; ++expert) total[expert] += world[source][expert];
  // With expert degree 1 each rank computes its own rows.
  GroupLoad group{std::vector<Load>(static_cast<size_t>(degree)), 1, 0, 0};
  std::vector<int64_t> at_home(static_cast<size_t>(degree));
  for (size_t expert = 0; expert < experts; ++expert) at_home[expert / local] += total[expert];
  group.rows = std::accumulate(total.begin(), total.end(), int64_t{0});
  if (group.rows > 0)
    group.imbalance = static_cast<double>(*std::max_element(at_home.begin(), at_home.end())) * degree /
                      static_cast<double>(group.rows);
  const auto give = [&](int rank, int64_t rows, bool is_guest) {
    Load& load = group.of_rank[static_cast<size_t>(rank)];
    load.add({rows, rows, is_guest ? 1 : 0});
    if (is_guest) group.lent += rows;
  };
  if (!spill || degree == 1) {
    for (size_t expert = 0; expert < experts; ++expert)
      give(static_cast<int>(static_cast<int64_t>(expert) / local), total[expert], false);
    return group;
  }
  const SpillPlan plan = plan_spill(total, degree, *spill);
  for (size_t expert = 0; expert < experts; ++expert)
    for (size_t i = 0; i < plan.shares_of_expert[expert].size(); ++i) {
      const SpillPlan::Share& share = plan.shares_of_expert[expert][i];
      give(share.rank, share.end - share.begin, i > 0);
    }
  return group;
}

}  // namespace

std::optional<SpillOptions> spill_of(const CheckedJob& job, const DeviceDescription& device) {
  if (job.job.moe.overload != OverloadPolicy::spill || job.layout.degree(Axis::expert) == 1) return std::nullopt;
  const DeviceFacts& facts = device.device.kind == at::kCUDA ? cuda_facts : cpu_facts;
  return dispatch_settings(job.job.moe, job.job.precision.experts, /*shuffle_seed=*/0, facts).spill;
}

double drop_from(StepRows& step, const CheckedJob& job) {
  const auto factor = job.job.moe.capacity_factor;
  if (!factor) return 0;
  const int64_t tokens = job.tokens_per_rank() * job.layout.world_size();
  const int64_t top_k = job.model.top_k();
  const int64_t capacity = expert_capacity(*factor, tokens, top_k, job.model.experts());
  double dropped = 0, choices = 0;
  for (std::vector<RowsBySource>& layers : step.of_micro_step)
    for (RowsBySource& rows : layers) {
      dropped +=
          static_cast<double>(drop_rows(rows, capacity, job.job.moe.drop_policy.value_or(DropPolicy::probability)));
      choices += static_cast<double>(tokens * top_k);
    }
  return dropped / choices;
}

RankLoads::RankLoads(const StepRows& step, const CheckedJob& job, const std::optional<SpillOptions>& spill) {
  const int world = job.layout.world_size(), degree = job.layout.degree(Axis::expert);
  Load most_in_all, most_in_one, most_guests;
  double imbalances = 0, groups = 0, lent = 0, rows = 0;
  for (const std::vector<RowsBySource>& layers : step.of_micro_step) {
    std::vector<Load> in_all(static_cast<size_t>(world));
    std::vector<int>& busiest = busiest_.emplace_back();
    for (const RowsBySource& of_layer : layers) {
      Load most;
      busiest.push_back(0);
      for (int first = 0; first < world; first += degree) {
        const GroupLoad group = load_of(of_layer, first, degree, spill);
        imbalances += group.imbalance;
        groups += 1;
        lent += static_cast<double>(group.lent);
        rows += static_cast<double>(group.rows);
        for (int place = 0; place < degree; ++place) {
          const Load& load = group.of_rank[static_cast<size_t>(place)];
          in_all[static_cast<size_t>(first + place)].add(load);
          if (load.by_rows() <= most.by_rows()) continue;
          most = load;
          busiest.back() = first + place;
        }
      }
      if (most.by_rows() > most_in_one.by_rows()) {
        most_in_one = most;
        most_in_one_ = busiest.back();
      }
    }
    for (int rank = 0; rank < world; ++rank) {
      const Load& load = in_all[static_cast<size_t>(rank)];
      if (load.by_rows() > most_in_all.by_rows()) {
        most_in_all = load;
        most_in_all_ = rank;
      }
      if (load.by_guests() > most_guests.by_guests()) {
        most_guests = load;
        most_guests_ = rank;
      }
    }
  }
  imbalance_ = imbalances / groups;
  lent_share_ = rows > 0 ? lent / rows : 0;
  if (most_guests.guests == 0) most_guests_ = most_in_all_;
}

std::vector<int> RankLoads::candidates() const {
  const std::set<int> ranks{most_in_all_, most_in_one_, most_guests_};
  return {ranks.begin(), ranks.end()};
}

}  // namespace conclave
