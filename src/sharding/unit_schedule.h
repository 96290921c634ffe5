// The order in which units are gathered, used and freed in one micro-step, and how far ahead the next gather starts.
// Everything is known beforehand, so the schedule is a list of visits and a cursor: no hooks, no guessing.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/step_clock.h"
#include "sharding/unit.h"

namespace conclave {

struct ScheduleOptions {
  int64_t prefetch_units = 1;  // gathers started ahead of the unit that computes
  // By unit: whether it stays gathered until its last visit if it is visited again. Empty: none does.
  std::vector<bool> stays_gathered;
};

class UnitSchedule {
 public:
  // `clock` learns how long collectives were waited for and in flight; it outlives the schedule.
  UnitSchedule(std::vector<Unit*> units, ScheduleOptions options, StepClock& clock);

  // `visits`: indices of units in the order in which begin() will be called. Nothing is gathered before the first.
  void start(std::vector<size_t> visits);

  // The next visit's unit, readable; the following gathers are under way when it returns.
  Unit& begin(size_t unit);
  // Gives the gathered memory back, unless the next begin() would gather the unit again, or the unit stays gathered and
  // is visited again.
  void end(size_t unit);

  // Starts the reduction of the unit's gradients, after finishing the previous one: at most two unsharded gradients are
  // alive. The previous one's sum over replicas, if there are any, has then begun, and the one before it is done.
  void reduce(size_t unit, bool first_micro_step, bool last_micro_step);
  // Ends all reductions, and frees what is still gathered.
  void finish();

 private:
  void begin_gather(size_t unit);
  void finish_gather(size_t unit);
  void finish_reduction(size_t unit);
  void finish_replica_sum();
  bool needed_soon(size_t unit) const;

  std::vector<Unit*> units_;
  ScheduleOptions options_;
  std::vector<size_t> visits_;
  size_t cursor_ = 0;  // the next visit
  std::vector<size_t> reducing_;
  struct ReplicaSum {
    size_t unit;
    StepClock::Time since;
  };
  std::optional<ReplicaSum> replica_sum_;  // under way
  StepClock& clock_;
  std::vector<std::optional<StepClock::Time>> gathering_since_;  // by unit; none: nothing travels
  std::vector<std::optional<StepClock::Time>> reducing_since_;
};

}  // namespace conclave
