#include "base/step_clock.h"

#include <gtest/gtest.h>

#include <thread>

namespace conclave {
namespace {

void pass_time() {
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

double seconds(const StepClock::Times& times, Phase phase) {
  return times.seconds[static_cast<size_t>(phase)];
}

// Sleeping 2 ms takes 2 ms or longer; what is compared is only which cells have time, and that none is counted twice.
TEST(StepClock, time_belongs_to_the_innermost_scope) {
  StepClock clock(2);
  const auto start = std::chrono::steady_clock::now();
  {
    const ClockScope outer(clock, Phase::computing, 1);
    pass_time();
    {
      const ClockScope inner(clock, Phase::gather);
      pass_time();
      const ClockScope other_unit(clock, Phase::reduce, 0);
      pass_time();
    }
    pass_time();
  }
  pass_time();  // nobody's
  const double wall = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const auto times = clock.take();
  ASSERT_EQ(times.size(), 3u);
  EXPECT_GE(seconds(times[1], Phase::computing), 0.004);
  EXPECT_GE(seconds(times[1], Phase::gather), 0.002);
  EXPECT_GE(seconds(times[0], Phase::reduce), 0.002);
  EXPECT_EQ(seconds(times[0], Phase::computing), 0.0);
  double sum = 0;
  for (int phase = 0; phase < phases; ++phase) sum += total_seconds(times, static_cast<Phase>(phase));
  EXPECT_GE(sum, 0.008);
  EXPECT_LE(sum, wall - 0.002);
}

TEST(StepClock, take_begins_anew_and_the_step_has_times_of_its_own) {
  StepClock clock(1);
  {
    const ClockScope scope(clock, Phase::data, clock.whole_step());
    pass_time();
    clock.add_in_flight(Phase::gather, 0, std::chrono::steady_clock::now() - std::chrono::seconds(3));
  }
  const auto times = clock.take();
  EXPECT_GE(seconds(times[1], Phase::data), 0.002);
  EXPECT_NEAR(times[0].in_flight[static_cast<size_t>(Phase::gather)], 3.0, 1.0);
  for (const StepClock::Times& later : clock.take())
    for (double value : later.seconds) EXPECT_EQ(value, 0.0);
}

TEST(StepClock, settles_before_a_phase_ends) {
  StepClock clock(1);
  int settled = 0;
  clock.set_settle([&] { ++settled; });
  {
    const ClockScope scope(clock, Phase::computing, 0);
    EXPECT_EQ(settled, 0);  // no phase has ended
    const ClockScope inner(clock, Phase::gather);
    EXPECT_EQ(settled, 1);
  }
  EXPECT_EQ(settled, 3);
}

TEST(StepClock, kernels_are_phases_of_their_own_where_asked_for) {
  StepClock clock(1);
  const auto work = [&] {
    const ClockScope scope(clock, Phase::computing, 0);
    {
      const KernelScope outer(Phase::kernels);
      pass_time();
      const KernelScope inner(Phase::products);
      pass_time();
    }
    const ClockScope optimizer(clock, Phase::optimizer);
    const KernelScope in_another_phase(Phase::kernels);
    pass_time();
  };
  work();
  auto times = clock.take();
  EXPECT_GE(seconds(times[0], Phase::computing), 0.004);
  EXPECT_EQ(seconds(times[0], Phase::products), 0.0);

  clock.time_kernels();
  work();
  times = clock.take();
  EXPECT_GE(seconds(times[0], Phase::kernels), 0.002);
  EXPECT_GE(seconds(times[0], Phase::products), 0.002);
  EXPECT_GE(seconds(times[0], Phase::optimizer), 0.002);
  std::thread([] { const KernelScope of_another_thread(Phase::products); }).join();
  const KernelScope outside(Phase::products);  // of no unit: nobody's
}

}  // namespace
}  // namespace conclave
