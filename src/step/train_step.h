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

// What a step trained on of one source of a blend, over all ranks.
struct SourceLoss {
  int64_t targets = 0;
  double loss_sum = 0;  // of their cross-entropies
  double mean() const { return loss_sum / static_cast<double>(targets); }
};

struct StepReport {
  double lm_loss = 0;               // mean cross-entropy over the targets of the step, all ranks; 0 of none
  int64_t targets = 0;              // that are trained on, all ranks
  std::vector<SourceLoss> sources;  // of a blend of several
  double aux_loss = 0;              // mean over micro-steps, without its coefficient
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

// A loaded batch as tensors on `device`.
MicroBatch to_micro_batch(const LoadedBatch& loaded, int64_t sequence, at::Device device);
// The batches of a loader, which outlives them, for TrainStep.
std::function<MicroBatch()> batches_of(BatchLoader& loader, const ParallelJob& job);

class TrainStep {
 public:
  TrainStep(ParallelJob& job, ForwardBackward& forward_backward);

  // The batch of each micro-step.
  using NextBatch = std::function<MicroBatch()>;
  // `targets_of_source`: the step's targets over all ranks, of each source of its data; the loss is divided by their
  // sum. `update`: the 1-based number of this AdamW update, for its bias correction; `lr` its learning rate.
  // `before_update` is called before parameters and optimizer state change, if they do.
  StepReport run(
      const NextBatch& next, const std::vector<int64_t>& targets_of_source, int64_t update, double lr,
      const std::function<void()>& before_update = [] {});

 private:
  StepReport compute(const NextBatch& next, const std::vector<int64_t>& targets_of_source, int64_t update, double lr,
                     const std::function<void()>& before_update);
  // Sums over all ranks of the losses of the step, in all and by source.
  void sum_losses(StepReport& report, double loss_sum, std::vector<double> sum_of_source);
  // The norm of the gradient, and AdamW. Fills the report's gradient_norm and not_finite.
  void update_unless_not_finite(StepReport& report, int64_t update, double lr,
                                const std::function<void()>& before_update);

  ParallelJob& job_;
  ForwardBackward& forward_backward_;
  Optimizer optimizer_;
};

}  // namespace conclave
