// A recorded routing under a job's layout: what its steps would take, need, drop and lend.
#pragma once

#include <string>
#include <vector>

#include "planner/paper_step.h"
#include "planner/recorded_routing.h"

namespace conclave {

struct ReplayedStep {
  int64_t first_recorded = 0;  // the step of the record in which its tokens begin
  double step_seconds = 0;
  int64_t peak_bytes = 0;  // of the rank that needs most
  int busiest = 0;         // that rank
  std::string moment;      // at which it needs most
  double imbalance = 1;    // rows of the busiest rank over the mean of its expert group, the mean of the layers
  double drop_rate = 0;    // share of the choices that a capacity drops
  double lent_share = 0;   // share of the rows that a rank computes for another
};

// Of a quantity over the steps.
struct Distribution {
  double median = 0, of_90 = 0, of_99 = 0, worst = 0;
  int64_t worst_step = 0;  // as ReplayedStep::first_recorded
};

struct Replay {
  std::string file;
  int64_t recorded_steps = 0;
  int64_t first = 0, last = 0;   // of the record
  int64_t steps = 0;             // of the job, that the tokens are enough for
  int64_t tokens_left_over = 0;  // that are not enough for another
  uint64_t unfinished_bytes = 0;
  std::vector<ReplayedStep> replayed;  // in order: all, or `even` ones and those with most rows
  int64_t even = 0;                    // evenly spread; the distributions are theirs, but for the worst
  Distribution step_seconds, peak_bytes, imbalance, drop_rate, lent_share;
  bool has_capacity = false, may_lend = false;
};

// `most`: steps that are run on paper; 0: all. If the record has more, half of them are those in which a rank has most
// rows, and half are evenly spread. `job`: with moe.overload and moe.dispatch_chunks chosen (choose_dispatch).
Replay replay(const RoutingRecord& record, const CheckedJob& job, const DeviceDescription& device, int64_t most);

// Of a rank, the routing of each micro-step: what PlannedRank::routing takes. Drops what a capacity drops.
std::vector<std::shared_ptr<const AssumedChoices>> routing_of_rank(const StepRows& step, const CheckedJob& job,
                                                                   int rank);

}  // namespace conclave
