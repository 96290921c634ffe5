// AdamW over this rank's shards, with the gradient clipped by its global norm. Knows flat ranges and axes, not models.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "comm/communicator.h"
#include "config/optimizer_section.h"

namespace conclave {

// A flat range of one shard in which all elements are treated alike. 1-D fp32 views of equal length.
struct OptimizerRange {
  at::Tensor parameter;
  at::Tensor exp_avg;
  at::Tensor exp_avg_sq;
  at::Tensor gradient;
  bool decay = true;
};

// The shards of one unit.
struct OptimizerUnit {
  std::vector<OptimizerRange> ranges;
  // Gradient shards that count towards the norm here: each element of the model is counted on exactly one rank, though
  // replicas hold it too.
  std::vector<at::Tensor> counted_gradients;
};

class Optimizer {
 public:
  Optimizer(const OptimizerConfig& config, std::vector<OptimizerUnit> units)
      : config_(config), units_(std::move(units)) {}

  // The square of each unit's gradient norm, summed over all ranks in a fixed order; in double. Collective.
  std::vector<double> gradient_squares(Communicator& world, at::Device device) const;

  // One AdamW update with learning rate `lr`; `step` is 1-based. Gradients are scaled by min(1, grad_clip / norm),
  // PyTorch's rule (with its 1e-6).
  void update(double lr, int64_t step, double gradient_norm);

 private:
  OptimizerConfig config_;
  std::vector<OptimizerUnit> units_;
};

}  // namespace conclave
