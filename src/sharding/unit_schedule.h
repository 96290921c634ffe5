// The order in which units are gathered, used and freed in one micro-step, and how far ahead the next gather starts.
// Everything is known beforehand, so the schedule is a list of visits and a cursor: no hooks, no guessing.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "sharding/unit.h"

namespace conclave {

struct ScheduleOptions {
  int64_t prefetch_units = 1;         // gathers started ahead of the unit that computes
  bool reshard_after_forward = true;  // false: a unit that is visited again stays gathered until its last visit
};

class UnitSchedule {
 public:
  UnitSchedule(std::vector<Unit*> units, ScheduleOptions options);

  // `visits`: indices of units in the order in which begin() will be called. Starts the first gathers.
  void start(std::vector<size_t> visits);

  // The next visit's unit, readable; the following gathers are under way when it returns.
  Unit& begin(size_t unit);
  // Gives the gathered memory back, unless the next begin() would gather the unit again (or at all, without
  // reshard_after_forward).
  void end(size_t unit);

  // Starts the reduction of the unit's gradients, after finishing the previous one: at most two unsharded gradients are
  // alive.
  void reduce(size_t unit, bool first_micro_step, bool last_micro_step);
  // Ends all reductions, and frees what is still gathered.
  void finish();

  // Seconds this rank waited for gathers and for reductions since the last call.
  struct Waiting {
    double gather = 0;
    double reduce = 0;
  };
  Waiting take_waiting();

 private:
  void prefetch();
  bool needed_soon(size_t unit) const;

  std::vector<Unit*> units_;
  ScheduleOptions options_;
  std::vector<size_t> visits_;
  size_t cursor_ = 0;  // the next visit
  std::vector<size_t> reducing_;
  Waiting waiting_;
};

}  // namespace conclave
