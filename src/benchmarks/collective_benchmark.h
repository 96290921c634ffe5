// The collectives of a training step of a job, each alone: what the links between its ranks carry.
#pragma once

#include <string>
#include <vector>

#include "step/parallel_job.h"

namespace conclave {

struct TimedCollective {
  std::string axis;
  std::string operation;
  std::string what;    // the tensor that travels
  int64_t bytes = 0;   // that a rank sends to others
  double seconds = 0;  // median, of the slowest rank

  double bytes_per_second() const { return static_cast<double>(bytes) / seconds; }
};

// Collective. The largest gather and reduction of each axis, rows dispatched in equal shares and the sum of statistics;
// of axes of one rank nothing, since there nothing travels. `repeats`: of each.
std::vector<TimedCollective> time_collectives(ParallelJob& job, int64_t repeats);

}  // namespace conclave
