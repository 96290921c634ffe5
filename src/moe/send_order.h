// The part of a dispatch plan that needs no other rank.
#pragma once

#include "moe/dispatch_plan.h"

namespace conclave {

struct SendOrder {
  DispatchPlan plan;   // the send side is filled in
  at::Tensor count_S;  // int64, CPU: choices that fell on each slot
};

// A slot is an expert on a rank: `slots_per_rank` of them on each, one rank after the other. slot_of_choice [T,K]
// int32, -1: dropped. `assumed_count_S`: on paper (moe/choices.h).
SendOrder make_send_order(const at::Tensor& slot_of_choice_TK, const std::vector<int64_t>& slots_per_rank,
                          const at::Tensor& assumed_count_S = {});

// How the choices of one rank fall on the slots of a spill plan. before[e]: rows of expert e from lower ranks.
at::Tensor slots_of_choices(const at::Tensor& expert_of_choice_TK, const SpillPlan& spill,
                            const std::vector<int64_t>& before, int ranks);

// How many of them do, from `source` alone: of all ranks' slots.
at::Tensor rows_to_slots(const std::vector<std::vector<int64_t>>& rows_of_expert_by_source, const SpillPlan& spill,
                         int source);

// Rows of each slot of `rank`, by source: [source x slots], from the rows of each expert, by source.
std::vector<int64_t> rows_of_slots(const std::vector<std::vector<int64_t>>& rows_of_expert_by_source,
                                   const SpillPlan& spill, int rank);

}  // namespace conclave
