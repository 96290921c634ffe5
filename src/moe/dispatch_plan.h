// Where every routed token goes. Made once per layer and micro-step by Dispatcher::plan, then only read: by dispatch on
// the way out, by combine on the way back, and by both backward passes. Rows to send are ordered by (destination rank,
// expert on that rank, source position), rows to compute by (expert, source rank, source position), so that results do
// not depend on timing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <numeric>
#include <vector>

namespace conclave {

struct DispatchPlan {
  int64_t tokens = 0;
  at::Tensor row_of_choice_TK;         // int32: row in the send order of token t's k-th choice
  at::Tensor token_of_row_R;           // int32, send order: the token each row carries
  at::Tensor choice_of_row_R;          // int32, send order: t * K + k
  std::vector<int64_t> sent_per_rank;  // rows to each rank of the expert axis
  std::vector<int64_t> received_per_rank;
  // Received rows arrive by source rank; experts need them by expert. Undefined when there is one rank: the orders are
  // the same.
  at::Tensor arrival_of_row_R;           // int32, expert order: where the row lies among the received
  at::Tensor row_of_arrival_R;           // its inverse
  std::vector<int64_t> rows_per_expert;  // rows this rank computes for each of its experts

  int64_t sent_rows() const { return std::accumulate(sent_per_rank.begin(), sent_per_rank.end(), int64_t{0}); }
  int64_t received_rows() const {
    return std::accumulate(received_per_rank.begin(), received_per_rank.end(), int64_t{0});
  }
};

}  // namespace conclave
