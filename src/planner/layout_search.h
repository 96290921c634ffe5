// All layouts and memory settings of a job for a given world, tried on paper.
#pragma once

#include <string>
#include <vector>

#include "planner/plan.h"

namespace conclave {

// One way to run the job, as the options of the command line that choose it.
struct LayoutOption {
  std::vector<std::string> settings;  // "parallel.hybrid_shard_degree=32"; all that are tried, in one order
  std::vector<std::string> changes;   // those that differ from the job as it stands
  bool is_given = false;              // the job as it stands
  int64_t peak_bytes = 0;
  std::string peak_moment;
  double left_bytes = 0;  // negative: so much is missing
  PlannedTime time;
};

struct LayoutSearch {
  std::vector<LayoutOption> fit;        // fastest first; of equals the one with most memory left
  std::vector<LayoutOption> too_large;  // the least missing first
  std::vector<std::string> refused;     // degrees that do not suit the world or the model, each with its reason
};

// Expert and shard degree, checkpointing, offloading, resharding, and the micro-batch at a constant global batch.
LayoutSearch search_layouts(const CheckedJob& job, const DeviceDescription& device, double imbalance);

}  // namespace conclave
