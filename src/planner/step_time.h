// How long a step takes on machines that are described: a clock for the computation and one for the gathers and
// reductions, moved along the walk of the step. What overlaps is what the engine lets overlap: gathers of the next
// units and the reduction of the last one run under the computation; dispatched rows are waited for.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "planner/device_description.h"
#include "planner/planned_rank.h"

namespace conclave {

struct PlannedTime {
  double step_seconds = 0;
  // What the step consists of; these add up to it.
  double products = 0;       // matrix products, recomputed ones included
  double memory_passes = 0;  // everything between the products: bound by memory
  double optimizer = 0;
  double dispatch = 0;     // routed rows on their way
  double gather_wait = 0;  // for parameters, beyond what computation hides
  double reduce_wait = 0;  // for sums of gradients, beyond what computation hides
  double offload_wait = 0;

  std::map<std::string, double> busy_by_axis;  // seconds in which the axis carries data, hidden or not
  double tokens_per_second = 0;                // of all ranks
  double model_flops_utilization = 0;          // of the peak; the model's own arithmetic (config/model_flops.h)
};

PlannedTime step_time(const PlannedRank& rank, const DeviceDescription& device);

// Seconds of one collective among `ranks`, each of which sends `bytes` in all (mesh/collective_bytes.h).
enum class Pattern { all_to_all, all_gather_or_reduce_scatter, all_reduce };
double collective_seconds(Pattern pattern, double bytes, const AxisGroup& group, const DeviceDescription& device);

// The assumptions, for people.
std::vector<std::string> assumptions_of_time(const DeviceDescription& device);

}  // namespace conclave
