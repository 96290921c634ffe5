// How many routed rows meet one rank in one layer. Routing decides it at run time; a plan assumes it.
#pragma once

#include <vector>

#include "mesh/checked_job.h"

namespace conclave {

struct RoutedRows {
  int64_t received = 0;              // that this rank computes, its own included
  int64_t received_from_others = 0;  // of these, from other ranks
  int64_t sent_to_others = 0;        // of this rank's tokens x top-k
  int64_t largest_expert = 0;        // of the rows received, those of the expert that has most
};

// One entry a layer, all alike. `imbalance`: rows a rank computes, over the mean of its expert group; its largest
// expert has the same factor over the mean of its experts. Both end at the most there can be (worst_imbalance()). 1:
// even.
std::vector<RoutedRows> assume_rows(const CheckedJob& job, double imbalance);

// The rows of the busiest rank when every token of its expert group chooses as many of its experts as it can, over the
// mean. 1 when the expert degree is 1: each rank then computes its own tokens' rows, whatever the routing.
double worst_imbalance(const CheckedJob& job);

}  // namespace conclave
