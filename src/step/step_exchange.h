// What the ranks of a run tell each other at the end of a step: all that a run sends for each step beside the step
// itself. So a plan sends it too.
#pragma once

#include "moe/routing_record.h"
#include "step/train_step.h"

namespace conclave {

// What limits the run is the rank that needs most and waits longest; what ends it or saves it, any rank may say.
struct RankExtremes {
  double peak_memory_bytes = 0;
  double peak_resident_bytes = 0;
  double gather_seconds = 0;
  double reduce_seconds = 0;
  double dispatch_seconds = 0;
  double data_seconds = 0;
  double offload_seconds = 0;
  double stop_signal = 0;     // that some rank has received; 0: none
  double saving_is_busy = 0;  // some rank's thread still writes
  double save_stall_seconds = 0;
  double deadline_is_near = 0;
  double save_is_due = 0;
};

// The highest of each. Collective: one all-reduce.
RankExtremes highest_over_ranks(ParallelJob& job, const RankExtremes& own);

// The rows of all ranks' tokens in the step, on rank 0; of the other ranks none. Collective: each rank sends its own to
// rank 0. `report`: of a job with metrics.record_routing.
RecordedRows gather_rows(ParallelJob& job, const StepReport& report);

}  // namespace conclave
