#include "config/schedule_section.h"

#include "config/fields.h"

namespace conclave {

void describe(ScheduleConfig& schedule, Fields& to) {
  to.section("schedule", "the learning rate over the steps");
  to.field(
      "schedule.kind", schedule.kind,
      OneOf<ScheduleKind>{
          {{"cosine", ScheduleKind::cosine}, {"linear", ScheduleKind::linear}, {"constant", ScheduleKind::constant}}},
      "how the learning rate falls from lr to min_lr after the warm-up");
  to.field("schedule.warmup_steps", schedule.warmup_steps, count_from(0), "steps in which it rises from 0 to lr");
  to.field("schedule.min_lr", schedule.min_lr, at_least(0), "where it ends; not used by kind constant");
}

}  // namespace conclave
