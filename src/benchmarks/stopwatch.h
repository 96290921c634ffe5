// Times work that all ranks of a job do at once, as in a step: they share caches, memory and links.
#pragma once

#include <functional>

#include "step/parallel_job.h"

namespace conclave {

class Stopwatch {
 public:
  // `job` outlives it.
  explicit Stopwatch(ParallelJob& job);

  // Seconds of `work(i)`, i = 0 .. repeats - 1, after one call that does not count: each rank's median, and of these
  // the slowest rank's. Waits for a device that works by itself. Collective.
  double median(int64_t repeats, const std::function<void(int64_t)>& work);

 private:
  ParallelJob& job_;
  std::function<void()> settle_;  // empty: there is nothing to wait for
};

}  // namespace conclave
