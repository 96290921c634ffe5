// When a run saves by time (checkpoint.every_minutes), and when it must end to have saved before its deadline
// (run.stop_after). Rank 0 asks its own clock and all ranks follow, so no other clock matters.
//
// All times are in seconds; moments count from the start of the process.
#pragma once

#include <string>

#include "config/job.h"

namespace conclave {

class RunClock {
 public:
  // `now`: the moment before the first step.
  RunClock(const Job& job, double now);

  // An iteration of the training loop took so long, without what its saves waited.
  void count_iteration(double seconds);
  void count_save_begin(double now);
  // From its beginning until it was on the disk.
  void count_save(double seconds);

  bool save_is_due(double now) const;
  // Whether another iteration, and the save that follows it, would end after the deadline. A save that is being written
  // must end before that one begins.
  bool deadline_is_near(double now, bool saving) const;

 private:
  // Without a measured save nobody knows how long before the deadline the last one must begin. So the first one of a
  // run with a deadline comes after this part of its time.
  static constexpr double first_save_at = 0.25;
  // Iterations and saves vary.
  static constexpr double margin = 1.2;
  static constexpr double end_seconds = 1;  // of the process, after its last save

  const bool saves_;
  const double save_every_;  // 0: not by time
  const double deadline_;    // 0: none
  double last_save_;
  bool saved_once_ = false;
  double longest_iteration_ = 0;
  double longest_save_ = 0;  // 0: none was measured
};

// What is kept of a run, said before its first step.
std::string what_is_kept(const Job& job);

// Since this process was started, by the kernel's clock.
double seconds_since_process_start();

}  // namespace conclave
