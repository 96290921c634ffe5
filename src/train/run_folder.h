// The layout of a run's output folder, and what a checkpoint of a run remembers beside tensors.
#pragma once

#include <filesystem>
#include <optional>

#include "train/parallel_job.h"

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
inline std::filesystem::path tensorboard_folder(const Job& job) {
  return job.run.output_dir / "tensorboard";
}

// Where a run stands.
struct TrainingPosition {
  int64_t step = 0;     // finished steps
  int64_t updates = 0;  // of AdamW: steps that were not skipped
  std::string data_fingerprint;
};

// Collective; returns the checkpoint's folder.
std::filesystem::path save_training_state(ParallelJob& job, const TrainingPosition& position);

// The checkpoint that the job's checkpoint.resume means; none: start from the beginning. UserError when it says `never`
// and the folder holds checkpoints that the run would mix with its own.
std::optional<std::filesystem::path> checkpoint_to_resume(const Job& job);

// Loads parameters and moments. UserError when the checkpoint is of another model, seed, sequence length or batch size,
// or of other data.
TrainingPosition load_training_state(ParallelJob& job, const std::filesystem::path& checkpoint,
                                     const std::string& data_fingerprint);

// Loads parameters alone: for evaluation and export, whatever the data.
TrainingPosition load_parameters(ParallelJob& job, const std::filesystem::path& checkpoint);

}  // namespace conclave
