// What one layer's way to the experts and back sends, collective by collective, as moe/ does: for traffic and time
// alike.
#pragma once

#include <vector>

#include "planner/planned_rank.h"

namespace conclave {

struct Sending {
  Axis axis = Axis::expert;
  const char* operation = "all_to_all";
  int64_t bytes = 0;  // to other ranks (mesh/collective_bytes.h)
};

// Not counted is what follows from the data alone: experts that are lent (moe.overload: spill). Of the shuffle's rows
// all but one in `expert_parallel_degree` are taken to change ranks.
std::vector<Sending> forward_sendings(const PlannedRank& rank, const RoutedRows& rows, bool training);
std::vector<Sending> backward_sendings(const PlannedRank& rank, const RoutedRows& rows);

}  // namespace conclave
