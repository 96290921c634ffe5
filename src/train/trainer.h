// A training run from its job to its last checkpoint.
#pragma once

#include <memory>
#include <optional>

#include "metrics/metrics_log.h"
#include "metrics/progress_line.h"
#include "metrics/tensorboard.h"
#include "train/evaluation.h"
#include "train/run_folder.h"
#include "train/train_step.h"

namespace conclave {

class Trainer {
 public:
  // Opens the data, allocates and fills the shards: from a checkpoint, a Hugging Face folder, or the declared
  // initialization. `job` outlives it.
  explicit Trainer(ParallelJob& job);

  // All remaining steps. Collective.
  void run();

 private:
  void start();
  void report(int64_t step, const StepReport& step_report, double lr, double seconds);
  void validate(int64_t step);
  void save(int64_t step);

  ParallelJob& job_;
  std::shared_ptr<const SampleStream> training_;
  std::shared_ptr<const SampleStream> validation_;  // null without data.validation
  TrainingPosition position_;
  ForwardBackward forward_backward_;
  int64_t skipped_in_a_row_ = 0;
  std::optional<EvaluationResult> last_validation_;  // of the step being reported

  // Rank 0's alone.
  std::unique_ptr<MetricsLog> metrics_;
  std::unique_ptr<TensorBoardLog> tensorboard_;
  std::unique_ptr<ProgressLine> progress_;
  double peak_flops_per_second_ = 0;  // of all ranks
  int64_t flops_per_token_ = 0;
};

}  // namespace conclave
