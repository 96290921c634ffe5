// One training step: micro-steps, the global gradient norm, clipping, AdamW. A step whose loss or gradient is not
// finite changes nothing, on any rank.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "data/batch_loader.h"
#include "moe/load_statistics.h"
#include "optim/optimizer.h"
#include "step/forward_backward.h"
#include "step/parallel_job.h"

namespace conclave {

struct StepReport {
  double lm_loss = 0;   // mean cross-entropy over the targets of the step, all ranks
  double aux_loss = 0;  // mean over micro-steps, without its coefficient
  double z_loss = 0;
  double loss = 0;           // lm_loss + coefficients x balancing losses
  double gradient_norm = 0;  // before clipping
  double drop_rate = 0;      // share of the step's choices that found their expert full; 0 without a capacity
  LoadStatistics load;
  std::vector<at::Tensor> own_rows_LE;  // int32: rows of this rank's tokens, by micro-step; with metrics.record_routing
  std::string
      not_finite;  // why the step was skipped: "loss", or the units whose gradient is not finite; empty: it was not
  std::vector<StepClock::Times> times;  // this rank's, by unit and of the step's own
};

// The job's training set in the order of training.
std::shared_ptr<const SampleStream> open_training(const ParallelJob& job);

// A loaded batch as tensors on `device`.
MicroBatch to_micro_batch(const LoadedBatch& loaded, int64_t sequence, at::Device device);
// The batches of a loader, which outlives them, for TrainStep.
std::function<MicroBatch()> batches_of(BatchLoader& loader, const ParallelJob& job);

class TrainStep {
 public:
  TrainStep(ParallelJob& job, ForwardBackward& forward_backward);

  // The batch of each micro-step.
  using NextBatch = std::function<MicroBatch()>;
  // `update`: the 1-based number of this AdamW update, for its bias correction; `lr` its learning rate.
  // `before_update` is called before parameters and optimizer state change, if they do.
  StepReport run(
      const NextBatch& next, int64_t update, double lr, const std::function<void()>& before_update = [] {});

 private:
  StepReport compute(const NextBatch& next, int64_t update, double lr, const std::function<void()>& before_update);
  // The norm of the gradient, and AdamW. Fills the report's gradient_norm and not_finite.
  void update_unless_not_finite(StepReport& report, int64_t update, double lr,
                                const std::function<void()>& before_update);

  ParallelJob& job_;
  ForwardBackward& forward_backward_;
  Optimizer optimizer_;
};

}  // namespace conclave
