// The layout of a run's output folder, and what a checkpoint of a run remembers beside tensors.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/agreed_load.h"
#include "data/blend.h"
#include "moe/routing_record.h"
#include "step/parallel_job.h"

namespace conclave {

inline std::filesystem::path checkpoints_folder(const Job& job) {
  return job.run.output_dir / "checkpoints";
}
inline std::filesystem::path metrics_file(const Job& job) {
  return job.run.output_dir / "metrics.jsonl";
}
inline std::filesystem::path resolved_job_file(const Job& job) {
  return job.run.output_dir / "job.yaml";
}
inline std::filesystem::path routing_file(const Job& job) {
  return job.run.output_dir / routing_file_name;
}
inline std::filesystem::path tensorboard_folder(const Job& job) {
  return job.run.output_dir / "tensorboard";
}

// Of what computes: "conclave", "torch".
std::map<std::string, std::string> versions();

// Where a run stands.
struct TrainingPosition {
  int64_t step = 0;              // finished steps
  int64_t samples = 0;           // the next sample of the training data's stream
  int64_t tokens = 0;            // trained on
  int64_t updates = 0;           // of AdamW: steps that were not skipped
  int64_t skipped_in_a_row = 0;  // the newest steps that were skipped
  std::string resumed_from;      // see CheckpointState
  std::string data_fingerprint;
  std::map<std::string, std::vector<double>> values;  // see CheckpointState
};

// What a checkpoint of the run at `position` says of it.
CheckpointState checkpoint_state(ParallelJob& job, const TrainingPosition& position);

// This rank's part of what is saved (replicas divide it among them), or of what is loaded: parameters and moments.
std::vector<TensorSlice> slices_to_save(ParallelJob& job);

// Collective. Loads what the job's checkpoint.resume means (see resume_choice.h), parameters and moments; none: start
// from the beginning. `training`: the data whose position is carried over. A run that goes back puts aside what it
// leaves. UserError when the job differs from the checkpoint's in a key that matters (see same_run.h); when every
// checkpoint is damaged, or the newest is and checkpoint.on_damage says stop.
std::optional<TrainingPosition> resume(ParallelJob& job, const Blend& training);

// What the run of a checkpoint started from, as the checkpoint's job says; relative paths are of the folder it was
// started in.
ModelSource source_of_run(const CheckpointState& state);

// The state of a checkpoint of a model from elsewhere: of a run that has not begun, on whatever data.
CheckpointState state_of_imported(const ModelConfig& model);

// Collective. Loads parameters alone, for evaluation and export, whatever the data: of `checkpoint`, or of the newest
// of the run that is not damaged. Returns the checkpoint's values (see CheckpointState). UserError when there is none.
std::map<std::string, std::vector<double>> load_parameters(ParallelJob& job,
                                                           const std::optional<std::filesystem::path>& checkpoint);

}  // namespace conclave
