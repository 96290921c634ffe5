// The time of a step on paper. Oracle: by hand.
#include "device/paper_clock.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace conclave {
namespace {

using Lane = PaperClock::Lane;

TEST(PaperClock, collectives_hide_behind_what_computes) {
  PaperClock clock({.fp32_operations = 5, .bf16_operations = 10, .fp8_operations = 20, .bytes = 4, .host_bytes = 2});
  const double first = clock.start(Lane::reductions, 3), second = clock.start(Lane::reductions, 3);
  const double rows = clock.start(Lane::rows, 1);
  EXPECT_DOUBLE_EQ(first, 3);
  EXPECT_DOUBLE_EQ(second, 6) << "one after the other on a lane";
  EXPECT_DOUBLE_EQ(rows, 1) << "beside it on another";
  clock.multiply(20, at::kBFloat16);
  clock.pass(8);
  EXPECT_DOUBLE_EQ(clock.seconds(), 4);
  clock.wait_until(first);
  EXPECT_DOUBLE_EQ(clock.seconds(), 4) << "it has ended";
  clock.wait_until(second);
  EXPECT_DOUBLE_EQ(clock.seconds(), 6);
  clock.multiply(20, at::kFloat8_e4m3fn);
  EXPECT_DOUBLE_EQ(clock.start_copy(4), 9);
}

TEST(PaperClock, a_steps_clock_shows_it) {
  PaperClock clock(PaperRates{});
  StepClock step(1, &clock);
  {
    const ClockScope computing(step, Phase::computing, 0);
    clock.multiply(2, at::kFloat);
    const ClockScope waiting(step, Phase::gather, 0);
    clock.wait_until(5);
  }
  const auto times = step.take();
  EXPECT_DOUBLE_EQ(times[0].seconds[static_cast<size_t>(Phase::computing)], 2);
  EXPECT_DOUBLE_EQ(times[0].seconds[static_cast<size_t>(Phase::gather)], 3);
}

}  // namespace
}  // namespace conclave
