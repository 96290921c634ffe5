// The section `schedule` of the job file. The learning rate over the steps.
#pragma once

#include <cstdint>

namespace conclave {

class Fields;

enum class ScheduleKind { cosine, linear, constant };

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::cosine;
  int64_t warmup_steps = 0;
  double min_lr = 1e-5;
};

void describe(ScheduleConfig& schedule, Fields& to);

}  // namespace conclave
