#include "optim/learning_rate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace conclave {

double learning_rate(const ScheduleConfig& schedule, double lr, int64_t steps, int64_t step) {
  if (step <= schedule.warmup_steps) return lr * static_cast<double>(step) / static_cast<double>(schedule.warmup_steps);
  const auto decay_steps = static_cast<double>(std::max<int64_t>(steps - schedule.warmup_steps, 1));
  const double progress = std::clamp(static_cast<double>(step - schedule.warmup_steps) / decay_steps, 0.0, 1.0);
  switch (schedule.kind) {
    case ScheduleKind::cosine:
      return schedule.min_lr + (lr - schedule.min_lr) * 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
    case ScheduleKind::linear:
      return lr + (schedule.min_lr - lr) * progress;
    case ScheduleKind::constant:
      return lr;
  }
  return lr;
}

}  // namespace conclave
