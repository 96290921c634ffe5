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
#include "step/axes.h"
#include "step/parallel_model.h"
#include "step/step_settings.h"

namespace conclave {

class ParallelJob {
 public:
  // Connects the axes. Allocates no parameter. `world` outlives it.
  ParallelJob(CheckedJob checked, World& world);

  const CheckedJob& checked() const { return checked_; }
  const Job& job() const { return checked_.job; }
  const ModelConfig& model_config() const { return checked_.model; }
  const Layout& layout() const { return checked_.layout; }
  const StepSettings& settings() const { return settings_; }
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
  // What of the job is not as it was written, because of its world.
  std::vector<std::string> adaptations() const;

  int64_t sequences_per_micro_step() const { return checked_.sequences_per_micro_step(); }
  int64_t sequences_per_step() const { return checked_.sequences_per_step(); }
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
  std::string not_lent_because_;           // empty: they are, or nobody asked for it
  StepSettings settings_;
  ParallelModel model_;
};

}  // namespace conclave
