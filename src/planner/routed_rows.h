// How many routed rows meet one rank in one layer. Routing decides it at run time; a plan assumes it.
#pragma once

#include <vector>

#include "mesh/checked_job.h"

namespace conclave {

struct RoutedRows {
  int64_t sent = 0;                  // of this rank's tokens x top-k, those that are not dropped
  int64_t received = 0;              // that this rank computes, its own included
  int64_t received_from_others = 0;  // of these, from other ranks
  int64_t sent_to_others = 0;        // of the rows sent
  int64_t largest_expert = 0;        // of the rows received, those of the expert that has most
};

// One entry a layer, all alike. `imbalance`: rows a rank computes, over the mean of its expert group; its largest
// expert has the same factor over the mean of its experts. Both end at the most there can be (worst_imbalance()). 1:
// even.
std::vector<RoutedRows> assume_rows(const CheckedJob& job, double imbalance);

// The parts of a layer's tokens that are dispatched one after the other (moe/routed_experts.h): as many as
// moe.dispatch_chunks says, or as overload: chunk makes of this rank's rows, equal as far as can be.
std::vector<RoutedRows> parts_of(const CheckedJob& job, const RoutedRows& rows);
// Whether one part begins before the one before it has ended.
bool parts_overlap(const CheckedJob& job);

// The rows of the busiest rank when every token of its expert group chooses as many of its experts as it can, over the
// mean. 1 when the expert degree is 1: each rank then computes its own tokens' rows, whatever the routing. With
// overload: spill the threshold of spilling, as far as moe.spill_least_rows allows it.
double worst_imbalance(const CheckedJob& job);

}  // namespace conclave
