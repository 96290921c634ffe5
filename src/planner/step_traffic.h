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

// Bytes that the operations of one layer's dispatch send, for the model of time as well.
struct DispatchBytes {
  int64_t counts = 0;    // rows per expert, before the rows themselves
  int64_t rows_out = 0;  // tokens with their weights to experts
  int64_t rows_back = 0;
  int64_t gradients_out = 0;
  int64_t gradients_back = 0;
};
DispatchBytes dispatch_bytes(const PlannedRank& rank, const RoutedRows& rows);

}  // namespace conclave
