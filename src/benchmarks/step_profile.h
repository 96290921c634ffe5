// Where the time of a job's training steps goes, measured: real steps of the job's own code on its own data, from the
// parameters a new run starts with. Nothing of it is kept.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/step_clock.h"
#include "step/train_step.h"

namespace conclave {

struct ProfileRequest {
  int64_t steps = 10;    // measured ones
  int64_t untimed = 2;   // before them: the first steps allocate what the later ones use again
  bool kernels = false;  // computing by kind of kernel
};

// Of the rank that waited the most; medians over the measured steps.
struct StepProfile {
  int rank = 0;
  bool kernels = false;                   // as asked for
  std::vector<std::string> units;         // names; behind them the step's own times
  std::vector<StepClock::Times> of_unit;  // units + 1
  StepClock::Times total;                 // over all of these
  double step_seconds = 0;                // from the first batch asked for to the end of AdamW
  double lowest_step_seconds = 0;
  double highest_step_seconds = 0;
  double unattributed_seconds = 0;  // of a step, in no phase
  int64_t fresh_allocations = 0;    // in the measured steps, of all ranks: each asked 1 MiB or more of the system
  std::optional<int64_t> synchronizations;  // of the last step with the device, on this rank; none on the CPU
};

// Collective; the same on every rank. Fills parameters and training state.
StepProfile profile_steps(ParallelJob& job, const ProfileRequest& request);

// Batches from elsewhere.
struct ProfiledData {
  std::function<MicroBatch()> next;
  std::function<std::vector<int64_t>(int64_t step)> targets_of_source;  // of a step, all ranks
};
StepProfile profile_steps(ParallelJob& job, const ProfileRequest& request, const ProfiledData& data);

}  // namespace conclave
