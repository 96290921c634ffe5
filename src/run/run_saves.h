// The checkpoints that a run leaves: each saved behind the steps that follow it or waited for, and what becomes of a
// save that fails.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>

#include "checkpoint/checkpoint_writer.h"
#include "run/run_folder.h"
#include "step/parallel_job.h"

namespace conclave {

class RunSaves {
 public:
  // `job` outlives this. `before_a_line` is called before anything is logged: it ends a progress line. `after_a_save`
  // is called on every rank when a checkpoint is on the disk.
  RunSaves(ParallelJob& job, std::function<void()> before_a_line,
           std::function<void(const FinishedSave&)> after_a_save);

  // After the step of `position`. A periodic save that fails is told, and training goes on; the last one of a run is
  // waited for, and throws.
  enum class Kind { periodic, last };
  void save(Kind kind, const TrainingPosition& position);  // collective; waits for a save that is still under way

  bool is_under_way() const { return writer_.saving().has_value(); }
  // Whether this rank's thread is at work.
  bool is_busy() const { return writer_.is_busy(); }
  // Collective, with a save under way and no rank busy.
  void go_on();
  // Of this rank alone: before parameters or optimizer state change.
  void take_back_memory();
  // Collective: waits for a save that is under way.
  void wait();

  // Since the last call: seconds that training waited for saves on this rank, and the save that was finished.
  double take_stall_seconds() { return std::exchange(stall_seconds_, 0); }
  std::optional<FinishedSave> take_finished() { return std::exchange(finished_, std::nullopt); }
  int64_t failed() const { return failed_; }

 private:
  void finish(Kind kind);
  // Runs a part of a save of `step`, counting its time.
  void part(Kind kind, int64_t step, const std::function<void()>& work);
  void tell(const FinishedSave& saved);

  ParallelJob& job_;
  const std::function<void()> before_a_line_;
  const std::function<void(const FinishedSave&)> after_a_save_;
  CheckpointWriter writer_;
  double stall_seconds_ = 0;
  int64_t failed_ = 0;
  std::optional<FinishedSave> finished_;
};

}  // namespace conclave
