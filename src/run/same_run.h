// Whether a job goes on with the run of a checkpoint: all that both say, compared.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_state.h"
#include "config/job_difference.h"
#include "mesh/checked_job.h"

namespace conclave {

// A job as its checkpoints keep it.
struct RunIdentity {
  KeyValues values;          // of every key; those that stand for something else as what they stand for
  std::string model_config;  // a config.json
  std::string data_fingerprint;
};

// `compute`: what precision.compute stands for on this machine.
RunIdentity identity_of(const CheckedJob& job, const std::string& compute, const std::string& data_fingerprint);

// The number of sequences in a micro-step, among the degrees of CheckpointState::layout.
inline constexpr const char* layout_key_micro_step = "sequences_per_micro_step";

// What is to be said before `job`, whose run is `identity`, goes on from `state`: changes that checkpoint.allow_changed
// allows, and what follows from them. UserError, with all the others at once and the one line that allows them, when it
// would be another run.
std::vector<std::string> check_same_run(const CheckedJob& job, const RunIdentity& identity,
                                        const CheckpointState& state, const std::filesystem::path& checkpoint);

// How a run whose steps are all done trains on, in words.
std::string how_to_train_on(const Job& job);

}  // namespace conclave
