#include "sharding/unit_schedule.h"

#include <algorithm>

#include "base/error.h"

namespace conclave {

UnitSchedule::UnitSchedule(std::vector<Unit*> units, ScheduleOptions options, StepClock& clock)
    : units_(std::move(units)),
      options_(std::move(options)),
      clock_(clock),
      gathering_since_(units_.size()),
      reducing_since_(units_.size()) {}

void UnitSchedule::start(std::vector<size_t> visits) {
  check_invariant(cursor_ == visits_.size(), "a micro-step ended after {} of {} unit visits", cursor_, visits_.size());
  visits_ = std::move(visits);
  cursor_ = 0;
}

void UnitSchedule::begin_gather(size_t unit) {
  if (!units_[unit]->is_sharded()) return;
  units_[unit]->begin_unshard();
  if (units_[unit]->is_gathering()) gathering_since_[unit] = clock_.now();
}

void UnitSchedule::finish_gather(size_t unit) {
  const ClockScope scope(clock_, Phase::gather, unit);
  units_[unit]->finish_unshard();
  if (const auto since = std::exchange(gathering_since_[unit], std::nullopt))
    clock_.add_in_flight(Phase::gather, unit, *since);
}

Unit& UnitSchedule::begin(size_t unit) {
  check_invariant(cursor_ < visits_.size() && visits_[cursor_] == unit, "unit {} is used out of its turn",
                  units_[unit]->name());
  ++cursor_;
  begin_gather(unit);
  const size_t end = std::min(visits_.size(), cursor_ + static_cast<size_t>(options_.prefetch_units));
  for (size_t i = cursor_; i < end; ++i) begin_gather(visits_[i]);
  finish_gather(unit);
  return *units_[unit];
}

bool UnitSchedule::needed_soon(size_t unit) const {
  const auto from = visits_.begin() + static_cast<std::ptrdiff_t>(cursor_);
  const bool until_last_visit = !options_.stays_gathered.empty() && options_.stays_gathered[unit];
  const auto ahead = until_last_visit ? visits_.end() - from
                                      : std::min<std::ptrdiff_t>(visits_.end() - from, options_.prefetch_units + 1);
  return std::find(from, from + ahead, unit) != from + ahead;
}

void UnitSchedule::end(size_t unit) {
  if (!needed_soon(unit)) units_[unit]->reshard();
}

void UnitSchedule::finish_reduction(size_t unit) {
  finish_replica_sum();
  const ClockScope scope(clock_, Phase::reduce, unit);
  units_[unit]->finish_reduce();
  if (units_[unit]->is_summing_replicas()) replica_sum_ = {unit, clock_.now()};
  if (const auto since = std::exchange(reducing_since_[unit], std::nullopt))
    clock_.add_in_flight(Phase::reduce, unit, *since);
}

void UnitSchedule::finish_replica_sum() {
  const auto sum = std::exchange(replica_sum_, std::nullopt);
  if (!sum) return;
  const ClockScope scope(clock_, Phase::reduce, sum->unit);
  units_[sum->unit]->finish_replica_sum();
  clock_.add_in_flight(Phase::reduce, sum->unit, sum->since);
}

void UnitSchedule::reduce(size_t unit, bool first_micro_step, bool last_micro_step) {
  for (size_t earlier : std::exchange(reducing_, {})) finish_reduction(earlier);
  units_[unit]->begin_reduce(first_micro_step, last_micro_step);
  if (units_[unit]->is_summing()) reducing_since_[unit] = clock_.now();
  reducing_.push_back(unit);
}

void UnitSchedule::finish() {
  for (size_t unit : std::exchange(reducing_, {})) finish_reduction(unit);
  finish_replica_sum();
  for (Unit* unit : units_) unit->reshard();
}

}  // namespace conclave
