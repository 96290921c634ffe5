// Where every routed token goes. Made once per layer and micro-step by Dispatcher::plan, then only read: by dispatch on
// the way out, by combine on the way back, and by both backward passes. Rows to send are ordered by (destination rank,
// expert on that rank, source position), rows to compute by (expert, source rank, source position), so that results do
// not depend on timing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "moe/spill_plan.h"

namespace conclave {

struct DispatchPlan {
  int64_t tokens = 0;  // of this rank
  int64_t top_k = 0;
  at::Tensor row_of_choice_TK;         // int32: row in the send order of token t's k-th choice; -1: dropped
  at::Tensor token_of_row_R;           // int32, send order: the token each row carries
  at::Tensor choice_of_row_R;          // int32, send order: t * K + k
  std::vector<int64_t> sent_per_rank;  // rows to each rank of the expert axis
  std::vector<int64_t> received_per_rank;
  // Received rows arrive by source rank; experts need them by expert. Undefined when there is one rank: the orders are
  // the same.
  at::Tensor arrival_of_row_R;           // int32, expert order: where the row lies among the received
  at::Tensor row_of_arrival_R;           // its inverse
  std::vector<int64_t> rows_per_expert;  // rows this rank computes for each of its experts, then for each of its guests
  // Experts that other ranks help to compute; null: none. The same on all ranks of the expert axis.
  std::shared_ptr<const SpillPlan> spill;

  // all_gather: what the three tensors of choices above are about is the tokens of all ranks, one rank after the other,
  // each with so many places; choices of other ranks' experts and of places without a token are -1.
  int64_t places_per_rank = 0;

  // global_token_shuffle: the fields above (but rows_per_expert and spill) bring tokens to the ranks that they are
  // dispatched from; this is the plan of their dispatch.
  std::shared_ptr<const DispatchPlan> after_shuffle;

  int64_t sent_rows() const { return std::accumulate(sent_per_rank.begin(), sent_per_rank.end(), int64_t{0}); }
  int64_t received_rows() const {
    return std::accumulate(received_per_rank.begin(), received_per_rank.end(), int64_t{0});
  }
};

}  // namespace conclave
