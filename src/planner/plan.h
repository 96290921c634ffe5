// What a job needs on a device: memory by rank class, traffic, time. Pure arithmetic over the job, the model's config
// and the device's description: no process, no data, no tensors.
#pragma once

#include <string>
#include <vector>

#include "mesh/collective_bytes.h"
#include "planner/device_description.h"
#include "planner/planned_rank.h"
#include "planner/step_memory.h"
#include "planner/step_time.h"

namespace conclave {

// Ranks whose memory is alike. Shards are equal on all ranks (the last ones of an axis hold padding), and every rank
// has the same number of tokens: only the rows that routing brings differ.
struct RankClass {
  std::string who;  // "the busiest rank of each expert group"
  int ranks = 0;
  double imbalance = 1;  // rows it computes, over the mean
  PlannedMemory memory;
};

struct Plan {
  CheckedJob job;
  std::string device_name;
  DeviceDescription device;
  int64_t compute_bytes = 4;  // of an element
  int64_t parameters = 0;     // of the model
  int64_t parameters_per_token = 0;
  int64_t parameters_of_rank = 0;  // its shards, padding included

  std::vector<RankClass> classes;  // the one that needs most first
  RankClass worst;                 // under the routing that needs most memory of all there can be
  PlannedMemory evaluation;        // of a validation
  TrafficByOperation traffic;      // of a step of the busiest rank
  PlannedTime time;                // of a step of the busiest rank

  double peak_bytes() const { return static_cast<double>(classes.front().memory.peak_of.total); }
  double left_bytes() const { return device.usable_bytes() - peak_bytes(); }
  bool fits() const { return left_bytes() >= 0; }
};

// `imbalance`: rows of the busiest rank over the mean of its expert group; at least 1.
Plan make_plan(const CheckedJob& job, const std::string& device_name, const DeviceDescription& device,
               double imbalance);

// The one that needs most memory first.
std::vector<RankClass> plan_classes(const CheckedJob& job, const DeviceDescription& device, double imbalance);

// What a device's ranks compute with, and by what they communicate.
Backend backend_of(const DeviceDescription& device, int world_size);

}  // namespace conclave
