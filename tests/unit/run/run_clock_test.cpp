// Oracle: the moments, computed by hand.
#include "run/run_clock.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace conclave {
namespace {

Job job_with(int64_t every, double minutes, std::optional<Duration> deadline) {
  Job job;
  job.checkpoint.every = every;
  job.checkpoint.every_minutes = minutes;
  job.run.stop_after = deadline;
  return job;
}

TEST(RunClock, a_save_is_due_so_long_after_the_one_before) {
  RunClock clock(job_with(0, 30, {}), 100);
  EXPECT_FALSE(clock.save_is_due(100 + 1799));
  EXPECT_TRUE(clock.save_is_due(100 + 1800));
  clock.count_save_begin(2000);  // by steps, or because it was asked for
  EXPECT_FALSE(clock.save_is_due(3799));
  EXPECT_TRUE(clock.save_is_due(3800));
  EXPECT_FALSE(clock.deadline_is_near(1e9, false)) << "there is none";
}

TEST(RunClock, without_minutes_no_save_is_due) {
  EXPECT_FALSE(RunClock(job_with(10, 0, {}), 0).save_is_due(1e9));
  EXPECT_FALSE(RunClock(job_with(0, 0, Duration{100}), 0).save_is_due(99)) << "a run that saves nothing";
}

TEST(RunClock, a_deadline_leaves_time_for_a_step_and_a_save) {
  RunClock clock(job_with(10, 0, Duration{1000}), 0);
  clock.count_iteration(20);
  clock.count_iteration(10);
  clock.count_save(50);
  clock.count_save(30);
  // 1.2 x (20 + 50) and a second: the longest of each.
  EXPECT_FALSE(clock.deadline_is_near(914, false));
  EXPECT_TRUE(clock.deadline_is_near(916, false));
  // Another save must end first.
  EXPECT_FALSE(clock.deadline_is_near(854, true));
  EXPECT_TRUE(clock.deadline_is_near(856, true));
}

TEST(RunClock, a_run_that_saves_nothing_needs_no_time_for_it) {
  RunClock clock(job_with(0, 0, Duration{100}), 0);
  clock.count_iteration(10);
  EXPECT_FALSE(clock.deadline_is_near(86, true));
  EXPECT_TRUE(clock.deadline_is_near(88, true));
}

TEST(RunClock, with_a_deadline_a_save_is_measured_early) {
  RunClock clock(job_with(0, 30, Duration{1000}), 0);
  EXPECT_FALSE(clock.save_is_due(249));
  EXPECT_TRUE(clock.save_is_due(250));
  clock.count_save_begin(250);
  EXPECT_FALSE(clock.save_is_due(251)) << "it is still being written";
  clock.count_save(5);
  EXPECT_FALSE(clock.save_is_due(900));
}

TEST(RunClock, a_process_knows_its_age) {
  const double age = seconds_since_process_start();
  EXPECT_GE(age, 0);
  EXPECT_LT(age, 3600);
  usleep(200'000);
  EXPECT_NEAR(seconds_since_process_start() - age, 0.2, 0.1);
}

}  // namespace
}  // namespace conclave
