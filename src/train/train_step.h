// One training step: micro-steps, the global gradient norm, clipping, AdamW. A step whose loss or gradient is not
// finite changes nothing, on any rank.
#pragma once

#include <string>
#include <vector>

#include "data/batch_loader.h"
#include "optim/optimizer.h"
#include "train/forward_backward.h"
#include "train/parallel_job.h"

namespace conclave {

struct StepReport {
  double lm_loss = 0;   // mean cross-entropy over the targets of the step, all ranks
  double aux_loss = 0;  // mean over micro-steps, without its coefficient
  double z_loss = 0;
  double loss = 0;           // lm_loss + coefficients x balancing losses
  double gradient_norm = 0;  // before clipping
  double expert_imbalance = 0;
  at::Tensor count_LE;  // double: choices that fell on each expert, over the step
  std::string
      not_finite;  // why the step was skipped: "loss", or the units whose gradient is not finite; empty: it was not
  double data_seconds = 0;  // this rank waited for data
};

// A loaded batch as tensors on `device`.
MicroBatch to_micro_batch(const LoadedBatch& loaded, int64_t sequence, at::Device device);

class TrainStep {
 public:
  TrainStep(ParallelJob& job, ForwardBackward& forward_backward);

  // `update`: the 1-based number of this AdamW update, for its bias correction; `lr` its learning rate.
  StepReport run(BatchLoader& loader, int64_t update, double lr);

 private:
  ParallelJob& job_;
  ForwardBackward& forward_backward_;
  Optimizer optimizer_;
};

}  // namespace conclave
