// The learning rate of each step: linear warm-up to lr, then cosine, linear or no decay to min_lr at the last step.
#pragma once

#include "config/schedule_section.h"

namespace conclave {

// `step` is 1-based. Warm-up: lr * step / warmup_steps. Then, with p from 0 to 1 over the remaining steps:
//   cosine (Loshchilov and Hutter, "SGDR", 2017): min_lr + (lr - min_lr) * (1 + cos(pi p)) / 2;  linear: lr + (min_lr -
//   lr) p;  constant: lr.
// Past the last step it stays at its last value.
double learning_rate(const ScheduleConfig& schedule, double lr, int64_t steps, int64_t step);

}  // namespace conclave
