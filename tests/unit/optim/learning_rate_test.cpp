#include "optim/learning_rate.h"

#include <gtest/gtest.h>

#include <cmath>

namespace conclave {
namespace {

constexpr double lr = 3e-4;
constexpr double min_lr = 3e-5;

ScheduleConfig schedule(ScheduleKind kind, int64_t warmup_steps) {
  return {kind, warmup_steps, min_lr};
}

// Oracle: closed values of the curve. Tolerance: a few roundings of double.
void expect_rate(double actual, double expected) {
  EXPECT_NEAR(actual, expected, 1e-15 * 8);
}

TEST(LearningRate, warm_up_is_linear_from_the_first_step) {
  for (const ScheduleKind kind : {ScheduleKind::cosine, ScheduleKind::linear, ScheduleKind::constant})
    for (int64_t step = 1; step <= 8; ++step)
      expect_rate(learning_rate(schedule(kind, 8), lr, 100, step), lr * static_cast<double>(step) / 8.0);
}

TEST(LearningRate, cosine_at_its_quarters) {
  const ScheduleConfig cosine = schedule(ScheduleKind::cosine, 8);
  const double middle = (lr + min_lr) / 2, half = (lr - min_lr) / 2;
  expect_rate(learning_rate(cosine, lr, 108, 33), middle + half * std::sqrt(0.5));
  expect_rate(learning_rate(cosine, lr, 108, 58), middle);
  expect_rate(learning_rate(cosine, lr, 108, 83), middle - half * std::sqrt(0.5));
  expect_rate(learning_rate(cosine, lr, 108, 108), min_lr);
}

TEST(LearningRate, linear_at_its_quarters) {
  const ScheduleConfig linear = schedule(ScheduleKind::linear, 8);
  expect_rate(learning_rate(linear, lr, 108, 33), 0.75 * lr + 0.25 * min_lr);
  expect_rate(learning_rate(linear, lr, 108, 58), 0.5 * lr + 0.5 * min_lr);
  expect_rate(learning_rate(linear, lr, 108, 108), min_lr);
}

TEST(LearningRate, without_warm_up_the_first_step_has_left_the_start) {
  expect_rate(learning_rate(schedule(ScheduleKind::linear, 0), lr, 10, 1), lr + (min_lr - lr) / 10);
  expect_rate(learning_rate(schedule(ScheduleKind::constant, 0), lr, 10, 1), lr);
}

TEST(LearningRate, stays_at_its_last_value) {
  for (const int64_t step : {101, 1000000}) {
    expect_rate(learning_rate(schedule(ScheduleKind::cosine, 8), lr, 100, step), min_lr);
    expect_rate(learning_rate(schedule(ScheduleKind::linear, 8), lr, 100, step), min_lr);
    expect_rate(learning_rate(schedule(ScheduleKind::constant, 8), lr, 100, step), lr);
  }
}

TEST(LearningRate, warm_up_may_be_the_whole_run) {
  expect_rate(learning_rate(schedule(ScheduleKind::cosine, 10), lr, 10, 10), lr);
  expect_rate(learning_rate(schedule(ScheduleKind::cosine, 20), lr, 10, 10), lr / 2);
}

}  // namespace
}  // namespace conclave
