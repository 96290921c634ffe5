// An optimizer's update of this rank's shards, with the gradient clipped by its global norm. Knows flat ranges and
// axes, not models.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "config/optimizer_section.h"

namespace conclave {

// A flat range of one shard in which all elements are treated alike. 1-D fp32 views of equal length.
struct OptimizerRange {
  at::Tensor parameter;
  std::vector<at::Tensor> state;  // what the optimizer keeps, in the order in which it declares it
  at::Tensor gradient;
  bool decay = true;
};

// The numbers of one update.
struct Update {
  double lr = 0;
  int64_t number = 1;     // 1-based
  double grad_scale = 1;  // the gradient is multiplied by this first (clipping)
};

// How parameters are updated, and what is kept for it: all that tells one optimizer from another. Sharding allocates,
// and checkpoints hold, what is declared here.
class OptimizerRule {
 public:
  virtual ~OptimizerRule() = default;

  // What is kept beside each parameter from update to update: fp32 tensors of its size, zero at first, by the names
  // that checkpoints give them.
  virtual std::vector<std::string> state() const = 0;
  virtual void update(const OptimizerRange& range, const Update& update) const = 0;

  // That an update reads and writes for each element: in one pass, the gradient once and all else twice.
  int64_t bytes_per_element() const { return 4 * (2 * (1 + static_cast<int64_t>(state().size())) + 1); }
};

// The one that a job asks for.
std::unique_ptr<const OptimizerRule> make_optimizer_rule(const OptimizerConfig& config);

// The shards of one unit.
struct OptimizerUnit {
  std::vector<OptimizerRange> ranges;
  // Gradient shards that count towards the norm here: each element of the model is counted on exactly one rank, though
  // replicas hold it too.
  std::vector<at::Tensor> counted_gradients;
};

class Optimizer {
 public:
  // `grad_clip`: the most that the gradient's norm may be; 0: any.
  Optimizer(std::unique_ptr<const OptimizerRule> rule, double grad_clip, std::vector<OptimizerUnit> units)
      : rule_(std::move(rule)), grad_clip_(grad_clip), units_(std::move(units)) {}

  // The square of each unit's gradient norm, summed over all ranks in a fixed order; in double. Collective.
  std::vector<double> gradient_squares(Communicator& world, at::Device device) const;

  // One update with learning rate `lr`; `number` is 1-based. Gradients are scaled by min(1, grad_clip / norm),
  // PyTorch's rule (with its 1e-6).
  void update(double lr, int64_t number, double gradient_norm);

 private:
  std::unique_ptr<const OptimizerRule> rule_;
  double grad_clip_;
  std::vector<OptimizerUnit> units_;
};

}  // namespace conclave
