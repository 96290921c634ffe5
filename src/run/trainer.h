// A training run from its job to its last checkpoint.
#pragma once

#include <memory>
#include <optional>

#include "memory/memory_category.h"
#include "metrics/metrics_log.h"
#include "metrics/progress_line.h"
#include "metrics/tensorboard.h"
#include "moe/dead_experts.h"
#include "run/evaluation.h"
#include "run/routing_recorder.h"
#include "run/run_clock.h"
#include "run/run_folder.h"
#include "run/run_lock.h"
#include "run/run_record.h"
#include "run/run_saves.h"
#include "run/run_signals.h"
#include "run/run_warnings.h"
#include "run/step_tracer.h"
#include "run/training_samples.h"
#include "step/train_step.h"

namespace conclave {

class Trainer {
 public:
  // Opens the data, allocates and fills the shards: from a checkpoint, a Hugging Face folder, or the declared
  // initialization. `job` outlives it. `coder`: for validation.prompts, on rank 0.
  explicit Trainer(ParallelJob& job, std::unique_ptr<TextCoder> coder = nullptr);

  // These steps of the run are to be written as a Chrome trace (run/step_tracer.h).
  void profile(ProfiledSteps steps);

  // All remaining steps, or those until a signal (see RunSignals) or the job's deadline ends the run, which the code
  // tells. Collective.
  ExitCode run();

 private:
  // What all ranks know at the end of a step: what they need to do the same next.
  struct Agreed {
    int stop_signal = 0;            // that some rank has received; 0: none
    bool deadline_is_near = false;  // by rank 0's clock
    bool save_is_due = false;       // by rank 0's clock, or because a rank was asked to
    bool saving_is_busy = false;    // some rank's thread still writes

    bool ends() const { return stop_signal != 0 || deadline_is_near; }
  };

  void start(std::unique_ptr<TextCoder> coder);
  // Of the step, to the other ranks, and on rank 0 to metrics and terminal.
  Agreed report(int64_t step, const StepReport& step_report, double lr, double seconds);
  RankExtremes extremes_of(const StepReport& step_report);
  MetricsRecord write_record(int64_t step, const StepReport& step_report, const RankExtremes& highest,
                             const StepCourse& course, const MemoryReport& memory,
                             const std::optional<FinishedSave>& saved);
  void show_progress(int64_t step, const StepReport& step_report, const RankExtremes& highest, const StepCourse& course,
                     const MemoryReport& memory, const MetricsRecord& record);
  void warn(int64_t step, const StepReport& step_report);
  void count_skipped(int64_t step, const StepReport& step_report);
  void validate(int64_t step);
  void save(RunSaves::Kind kind);
  Agreed own_view();  // this rank's part of what all agree on
  ExitCode end_early(const Agreed& agreed);

  ParallelJob& job_;
  std::unique_ptr<RunLock> lock_;  // rank 0's: of the output folder, for as long as anything is written there
  std::shared_ptr<const Blend> training_;
  std::vector<NamedSet> validation_;  // none without data.validation
  TrainingPosition position_;
  ForwardBackward forward_backward_;
  RunSaves saves_;
  DeadExperts dead_experts_;
  RunWarnings warnings_;
  int64_t first_step_ = 1;              // that this process runs
  std::unique_ptr<StepTracer> tracer_;  // null: no step is profiled
  RunSignals signals_;
  RunClock clock_;
  double save_seconds_ = 0;                        // that the iteration in hand waited for saves
  std::vector<EvaluationResult> last_validation_;  // of the step being reported
  std::unique_ptr<TrainingSamples> samples_;       // null without validation.prompts
  std::vector<std::string> last_samples_;          // of the step being reported

  std::unique_ptr<RoutingRecorder> routing_;

  // Rank 0's alone.
  std::unique_ptr<MetricsLog> metrics_;
  std::unique_ptr<TensorBoardLog> tensorboard_;
  std::unique_ptr<ProgressLine> progress_;
  double peak_flops_per_second_ = 0;  // of all ranks
  int64_t flops_per_token_ = 0;
};

}  // namespace conclave
