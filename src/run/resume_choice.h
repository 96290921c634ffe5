// Which checkpoints a start may go on from, as checkpoint.resume says it.
//
// A path is an order to go back once: the run that it started, when it is started again by the same job, goes on from
// its own newest checkpoint. Its checkpoints know that they come from there (CheckpointState::resumed_from).
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_reader.h"
#include "mesh/checked_job.h"

namespace conclave {

struct ResumeChoice {
  std::vector<std::filesystem::path> candidates;  // in the order in which they are tried; none: a run begins
  bool may_fall_back = false;                     // from a damaged one to the next
};

// Reads manifests only. UserError when the job says `never` and the folder holds checkpoints that the run would mix
// with its own, or names a path where there is no whole checkpoint.
ResumeChoice choose_resume(const Job& job);

// Puts values for nulls that stand for how a run began (moe.aux_loss_layers): those of the checkpoint that a start goes
// on from, so that it does not matter whether the job still says how it began. UserError as choose_resume().
void take_over_from_run(Job& job);

// What a start of the job would refuse of the checkpoint that it goes on from, found without ranks and without reading
// its tensors. `data_fingerprint`: none if the job has no data. Warnings are logged.
void check_resume(const CheckedJob& job, const std::optional<std::string>& data_fingerprint);

// The path in checkpoint.resume; none: it is a word.
std::optional<std::filesystem::path> path_to_resume(const Job& job);

// What the checkpoints of a run say that goes on from `loaded` (see CheckpointState::resumed_from).
std::string origin_after(const Job& job, const std::filesystem::path& loaded, const Manifest& manifest);

}  // namespace conclave
