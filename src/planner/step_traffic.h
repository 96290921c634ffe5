// What one rank sends in a step: calls and bytes by axis and operation, exactly those that a CountingCommunicator
// counts.
#pragma once

#include "mesh/collective_bytes.h"
#include "planner/planned_rank.h"

namespace conclave {

// Of a step of training: all micro-steps, the loss, the gradient norm.
TrafficByOperation step_traffic(const PlannedRank& rank);
TrafficByOperation micro_step_traffic(const PlannedRank& rank, bool last);
TrafficByOperation evaluation_traffic(const PlannedRank& rank);

}  // namespace conclave
