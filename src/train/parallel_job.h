// A job laid over the ranks: what every command that touches a model sets up first, in one order. Cheap checks come
// first, so that a mistake is refused before any rank allocates.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/host_tensors.h"
#include "comm/world.h"
#include "config/job_file.h"
#include "mesh/checked_job.h"
#include "train/axes.h"
#include "train/parallel_model.h"

namespace conclave {

class ParallelJob {
 public:
  // Connects the axes. Allocates no parameter. `world` outlives it.
  ParallelJob(CheckedJob checked, World& world);

  const Job& job() const { return checked_.job; }
  const ModelConfig& model_config() const { return checked_.model; }
  const Layout& layout() const { return checked_.layout; }
  int64_t micro_steps() const { return checked_.micro_steps; }
  at::ScalarType compute() const { return model_.options().compute_dtype; }
  at::Device device() const { return model_.options().device; }
  World& world() { return world_; }
  Axes& axes() { return axes_; }
  // The world axis, for CPU tensors.
  Communicator& host_world() { return host_world_ ? *host_world_ : axes_.world(); }
  ParallelModel& model() { return model_; }
  int rank() const { return world_.rank(); }
  bool is_first() const { return world_.rank() == 0; }

  // A balancing coefficient: the job's, or the model's own.
  double aux_coefficient() const;
  // Sequences of one micro-step over all ranks.
  int64_t sequences_per_micro_step() const { return checked_.job.data.micro_batch_size * world_.size(); }
  int64_t sequences_per_step() const { return sequences_per_micro_step() * micro_steps(); }
  int64_t tokens_per_step() const { return checked_.tokens_per_step(); }

  // Of the rank that held the most memory since its start, as the kernel counts it. Collective.
  double most_resident_mebibytes();

  // Sums over all ranks, in rank order.
  std::vector<double> sum_over_world(const std::vector<double>& values);
  std::vector<double> max_over_world(const std::vector<double>& values);

 private:
  std::vector<double> reduce_over_world(const std::vector<double>& values, Reduction reduction);

  CheckedJob checked_;
  World& world_;
  Axes axes_;
  std::optional<HostTensors> host_world_;  // where the axes take tensors of a device only
  ParallelModel model_;
};

// The parameters a new run starts with: those of model.init_from, of the dense model in model.upcycle_from, or the
// declared initialization. They are allocated. Collective.
void start_parameters(ParallelJob& job);

}  // namespace conclave
