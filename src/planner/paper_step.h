// A step of one rank, run on paper: the engine's own code (step/train_step.h) over tensors without memory. Its memory,
// traffic and time are what the engine allocates, sends and is priced at, by construction.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/memory_use.h"
#include "mesh/collective_bytes.h"
#include "planner/assumed_routing.h"
#include "planner/device_description.h"

namespace conclave {

// Everything that memory, traffic and time of a rank's steps depend on.
struct PlannedRank {
  CheckedJob job;
  int rank = 0;
  DeviceDescription device;
  std::vector<std::shared_ptr<const AssumedChoices>> routing;  // of each micro-step; one: all are alike
  bool stages_sums = false;  // other ranks are reached by Gloo, which sums in buffers of its own
  int64_t threads = 1;       // that compute on a CPU: some buffers exist once for each
};

// A rank of a job on a device, as others there are.
PlannedRank plan_rank(const CheckedJob& job, int rank, const DeviceDescription& device,
                      std::shared_ptr<const AssumedChoices> routing);

// What ATen allocates for cuBLAS on a GPU of compute capability 9 and keeps, for each of the two streams that multiply
// (cuda/two_streams.h): part of every plan for CUDA.
inline constexpr int64_t cublas_workspace_bytes = 2 * (int64_t{32} << 20);

struct PlannedMemory {
  MemoryUse peak_of;      // each category's own highest; total is the highest total
  MemoryUse at_peak;      // the categories at the moment of the highest total
  std::string moment;     // "backward of layers.3, experts"
  int64_t offloaded = 0;  // bytes of layer inputs away from the device, at most
};

struct PlannedTime {
  double step_seconds = 0;
  // What the step consists of; these add up to it.
  double products = 0;       // matrix products, recomputed ones included
  double attention = 0;      // scores, softmax and values
  double memory_passes = 0;  // everything between the products: bound by memory
  double optimizer = 0;
  double dispatch = 0;     // waiting for routed rows
  double gather_wait = 0;  // for parameters, beyond what computation hides
  double reduce_wait = 0;  // for sums of gradients, beyond what computation hides
  double offload_wait = 0;

  std::map<std::string, double> busy_by_axis;  // seconds in which the axis carries data, hidden or not
  double tokens_per_second = 0;                // of all ranks
  double model_flops_utilization = 0;          // of the peak; the model's own arithmetic (config/model_flops.h)
};

struct PlannedStep {
  PlannedMemory memory;
  TrafficByOperation traffic;  // what the rank sends
  PlannedTime time;
  int64_t parameters = 0;     // of its shards, padding included
  int64_t compute_bytes = 4;  // of an element
};

// Of training, in its steady state.
PlannedStep plan_step(const PlannedRank& rank);

// Of a micro-step of validation between two steps; without time.
PlannedStep plan_evaluation(const PlannedRank& rank);

}  // namespace conclave
