// What a job needs on a device: memory by rank class, traffic, time, from steps that are run on paper: no other
// process, no data, no memory.
#pragma once

#include <string>
#include <vector>

#include "planner/paper_step.h"

namespace conclave {

// Ranks whose memory is alike. Shards are equal on all ranks (the last ones of an axis hold padding), and every rank
// has the same number of tokens: only the rows that routing brings differ.
struct RankClass {
  std::string who;  // "the busiest rank of each expert group"
  int ranks = 0;
  double imbalance = 1;  // rows of its experts, over the mean
  PlannedStep step;
  bool is_at_times = false;  // not under the assumed routing, but in some step of a run: its memory must fit
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
  PlannedStep busiest;             // of the rank that computes most rows

  double peak_bytes() const { return static_cast<double>(classes.front().step.memory.peak_of.total); }
  double left_bytes() const { return device.usable_bytes() - peak_bytes(); }
  bool fits() const { return left_bytes() >= 0; }
};

// `imbalance`: rows of the busiest rank over the mean of its expert group; at least 1.
Plan make_plan(const CheckedJob& job, const std::string& device_name, const DeviceDescription& device,
               double imbalance);

// The one that needs most memory first.
std::vector<RankClass> plan_classes(const CheckedJob& job, const DeviceDescription& device, double imbalance);

}  // namespace conclave
