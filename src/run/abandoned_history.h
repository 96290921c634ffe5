// What a run leaves behind when it goes back to an older checkpoint: its later checkpoints, exports and metrics are put
// aside, where no resume falls back to them and checkpoint.keep does not count them.
#pragma once

#include <filesystem>

#include "config/job.h"

namespace conclave {

// Whether it lies among the checkpoints of the job's output folder.
bool is_own_checkpoint(const Job& job, const std::filesystem::path& checkpoint);

// Before a run goes on from `checkpoint`, of `step`, which checkpoint.resume named. What the output folder holds of
// later steps (all that it holds, if the checkpoint is not one of its own) is moved to checkpoints/abandoned-<number>/,
// with a copy of the metrics as they were. One rank calls it. What it did is logged.
void abandon_history_after(const Job& job, const std::filesystem::path& checkpoint, int64_t step);

// The metrics of a run that left no checkpoint are put aside, not overwritten.
void put_metrics_aside(const Job& job);
// Renames a file with something in it to <file>.1 (.2, ...).
void put_aside(const std::filesystem::path& file);

}  // namespace conclave
