#include "planner/replay.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "planner/rank_loads.h"

namespace conclave {
namespace {

// Rows of a rank's layer as another rank's: the members of the group change places, and their experts with them.
RowsBySource as_rank(const RowsBySource& group, int64_t from, int64_t to) {
  const auto degree = static_cast<int64_t>(group.size());
  const auto experts = static_cast<int64_t>(group[0].size()), local = experts / degree;
  const int64_t shift = (to - from + degree) % degree;
  RowsBySource turned(group.size(), std::vector<int64_t>(group[0].size()));
  for (int64_t source = 0; source < degree; ++source)
    for (int64_t expert = 0; expert < experts; ++expert)
      turned[(source + shift) % degree][(expert + shift * local) % experts] = group[source][expert];
  return turned;
}

PlannedStep plan_with(const CheckedJob& job, int rank, const DeviceDescription& device,
                      std::vector<std::shared_ptr<const AssumedChoices>> routing) {
  PlannedRank planned = plan_rank(job, rank, device, nullptr);
  planned.routing = std::move(routing);
  return plan_step(planned);
}

// The ranks wait for each other in every layer, so a step takes as long as the busiest rank of each.
double seconds_of(const StepRows& step, const RankLoads& loads, const CheckedJob& job,
                  const DeviceDescription& device) {
  std::vector<std::shared_ptr<const AssumedChoices>> routing;
  for (size_t m = 0; m < step.of_micro_step.size(); ++m) {
    std::vector<RowsBySource> layers;
    for (size_t layer = 0; layer < step.of_micro_step[m].size(); ++layer) {
      const int busiest = loads.busiest_in(m, layer);
      layers.push_back(as_rank(group_of(step.of_micro_step[m][layer], job.layout, busiest),
                               job.layout.index(Axis::expert, busiest), 0));
    }
    routing.push_back(std::make_shared<CountedRouting>(std::move(layers)));
  }
  return plan_with(job, 0, device, std::move(routing)).time.step_seconds;
}

ReplayedStep replay_step(StepRows step, const CheckedJob& job, const DeviceDescription& device) {
  ReplayedStep replayed;
  replayed.first_recorded = step.first_recorded;
  replayed.drop_rate = drop_from(step, job);
  const RankLoads loads(step, job, spill_of(job, device));
  replayed.imbalance = loads.imbalance();
  replayed.lent_share = loads.lent_share();
  for (const int rank : loads.candidates()) {
    const PlannedMemory memory = plan_with(job, rank, device, routing_of_rank(step, job, rank)).memory;
    if (memory.peak_of.total <= replayed.peak_bytes) continue;
    replayed.peak_bytes = memory.peak_of.total;
    replayed.busiest = rank;
    replayed.moment = memory.moment;
  }
  replayed.step_seconds = seconds_of(step, loads, job, device);
  return replayed;
}

// Ascending. `even` ones, and as many more of those with most rows.
std::vector<int64_t> choose_steps(const RecordedRouting& routing, const CheckedJob& job, int64_t even) {
  std::set<int64_t> chosen;
  for (int64_t i = 0; i < even; ++i) chosen.insert(i * routing.steps() / even);
  if (even == routing.steps()) return {chosen.begin(), chosen.end()};
  std::vector<std::pair<double, int64_t>> by_rows;
  for (int64_t i = 0; i < routing.steps(); ++i) {
    by_rows.emplace_back(-RankLoads(routing.step(i), job, std::nullopt).imbalance(), i);
  }
  std::sort(by_rows.begin(), by_rows.end());
  for (int64_t i = 0; i < even && i < routing.steps(); ++i) chosen.insert(by_rows[static_cast<size_t>(i)].second);
  return {chosen.begin(), chosen.end()};
}

// `even`: of the evenly spread steps, `all`: of all that were replayed.
Distribution distribution_of(const std::vector<ReplayedStep>& all, const std::vector<bool>& is_even,
                             const std::function<double(const ReplayedStep&)>& quantity) {
  std::vector<double> values;
  Distribution of;
  const ReplayedStep* worst = &all.front();
  for (size_t i = 0; i < all.size(); ++i) {
    if (is_even[i]) values.push_back(quantity(all[i]));
    if (quantity(all[i]) > quantity(*worst)) worst = &all[i];
  }
  std::sort(values.begin(), values.end());
  // The lowest value that this share of the steps does not exceed.
  const auto at = [&](double share) {
    const auto place = static_cast<int64_t>(std::ceil(share * static_cast<double>(values.size()))) - 1;
    return values[static_cast<size_t>(std::max<int64_t>(place, 0))];
  };
  return {at(0.5), at(0.9), at(0.99), quantity(*worst), worst->first_recorded};
}

}  // namespace

std::vector<std::shared_ptr<const AssumedChoices>> routing_of_rank(const StepRows& step, const CheckedJob& job,
                                                                   int rank) {
  std::vector<std::shared_ptr<const AssumedChoices>> routing;
  for (const std::vector<RowsBySource>& layers : step.of_micro_step) {
    std::vector<RowsBySource> of_group;
    of_group.reserve(layers.size());
    for (const RowsBySource& world : layers) of_group.push_back(group_of(world, job.layout, rank));
    routing.push_back(std::make_shared<CountedRouting>(std::move(of_group)));
  }
  return routing;
}

Replay replay(const RoutingRecord& record, const CheckedJob& job, const DeviceDescription& device, int64_t most) {
  const RecordedRouting routing(record, job);
  Replay replay;
  replay.file = record.file().string();
  replay.recorded_steps = static_cast<int64_t>(record.steps().size());
  replay.first = record.steps().front().step;
  replay.last = record.steps().back().step;
  replay.steps = routing.steps();
  replay.tokens_left_over = routing.tokens_left_over();
  replay.unfinished_bytes = record.unfinished_bytes();
  replay.has_capacity = job.job.moe.capacity_factor.has_value();
  replay.may_lend = job.job.moe.overload == OverloadPolicy::spill && job.layout.degree(Axis::expert) > 1;
  replay.even = most == 0 || most >= routing.steps() ? routing.steps() : std::max<int64_t>(1, most / 2);
  std::vector<bool> is_even;
  for (const int64_t index : choose_steps(routing, job, replay.even)) {
    const int64_t nearest = (index * replay.even + routing.steps() - 1) / routing.steps();
    is_even.push_back(nearest < replay.even && nearest * routing.steps() / replay.even == index);
    replay.replayed.push_back(replay_step(routing.step(index), job, device));
  }
  const auto of = [&](auto&& quantity) { return distribution_of(replay.replayed, is_even, quantity); };
  replay.step_seconds = of([](const ReplayedStep& step) { return step.step_seconds; });
  replay.peak_bytes = of([](const ReplayedStep& step) { return static_cast<double>(step.peak_bytes); });
  replay.imbalance = of([](const ReplayedStep& step) { return step.imbalance; });
  replay.drop_rate = of([](const ReplayedStep& step) { return step.drop_rate; });
  replay.lent_share = of([](const ReplayedStep& step) { return step.lent_share; });
  return replay;
}

}  // namespace conclave
