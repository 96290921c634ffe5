#include "moe/send_order.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "kernels/permute.h"

namespace conclave {

SendOrder make_send_order(const at::Tensor& slot_of_choice_TK, const std::vector<int64_t>& slots_per_rank,
                          const at::Tensor& assumed_count_S) {
  const int64_t slots = std::accumulate(slots_per_rank.begin(), slots_per_rank.end(), int64_t{0});
  ExpertOrder order = order_by_expert(slot_of_choice_TK.contiguous(), slots, assumed_count_S);
  SendOrder result;
  DispatchPlan& plan = result.plan;
  plan.tokens = slot_of_choice_TK.size(0);
  plan.top_k = slot_of_choice_TK.size(1);
  plan.row_of_choice_TK = order.row_of_choice_TK;
  plan.token_of_row_R = order.choice_of_row_R.div(plan.top_k, "floor");
  plan.choice_of_row_R = order.choice_of_row_R;
  const auto* count = order.count_E.const_data_ptr<int64_t>();
  for (const int64_t slots_of_rank : slots_per_rank) {
    plan.sent_per_rank.push_back(std::accumulate(count, count + slots_of_rank, int64_t{0}));
    count += slots_of_rank;
  }
  result.count_S = order.count_E;
  return result;
}

at::Tensor slots_of_choices(const at::Tensor& expert_of_choice_TK, const SpillPlan& spill,
                            const std::vector<int64_t>& before, int ranks) {
  // The slot of each share: a rank's own experts first, then its guests.
  const auto experts = static_cast<int64_t>(spill.shares_of_expert.size());
  std::vector<int64_t> first_slot;
  std::vector<std::vector<int64_t>> guests;
  int64_t slots = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    first_slot.push_back(slots);
    guests.push_back(spill.guests_of(rank));
    slots += spill.experts_per_rank + static_cast<int64_t>(guests.back().size());
  }
  std::vector<std::vector<int32_t>> slot_of_share(experts);
  for (int64_t expert = 0; expert < experts; ++expert)
    for (const SpillPlan::Share& share : spill.shares_of_expert[expert]) {
      const auto& hosted = guests[share.rank];
      const int64_t place =
          share.rank == spill.home_of(expert)
              ? expert % spill.experts_per_rank
              : spill.experts_per_rank + (std::lower_bound(hosted.begin(), hosted.end(), expert) - hosted.begin());
      slot_of_share[expert].push_back(static_cast<int32_t>(first_slot[share.rank] + place));
    }

  const at::Tensor choice_TK = expert_of_choice_TK.to(at::kCPU).contiguous();
  at::Tensor slot_TK = at::empty(choice_TK.sizes(), choice_TK.options());
  const auto* choice = choice_TK.const_data_ptr<int32_t>();
  auto* slot = slot_TK.data_ptr<int32_t>();
  std::vector<int64_t> next = before;  // the place of an expert's next row among all ranks' rows of it
  std::vector<size_t> share(static_cast<size_t>(experts));  // that it lies in
  for (int64_t i = 0; i < choice_TK.numel(); ++i) {
    const int32_t expert = choice[i];
    if (expert < 0) {
      slot[i] = -1;
      continue;
    }
    const auto& shares = spill.shares_of_expert[expert];
    const int64_t row = next[expert]++;
    while (row >= shares[share[expert]].end) ++share[expert];
    slot[i] = slot_of_share[expert][share[expert]];
  }
  return slot_TK.to(expert_of_choice_TK.device());
}

std::vector<int64_t> rows_of_slots(const std::vector<std::vector<int64_t>>& rows_of_expert_by_source,
                                   const SpillPlan& spill, int rank) {
  std::vector<int64_t> hosted;
  for (int64_t expert = rank * spill.experts_per_rank; expert < (rank + 1) * spill.experts_per_rank; ++expert)
    hosted.push_back(expert);
  for (const int64_t guest : spill.guests_of(rank)) hosted.push_back(guest);
  const size_t slots = hosted.size();
  std::vector<int64_t> rows(rows_of_expert_by_source.size() * slots);
  for (size_t slot = 0; slot < slots; ++slot) {
    const int64_t expert = hosted[slot];
    const auto& shares = spill.shares_of_expert[expert];
    const auto share = std::find_if(shares.begin(), shares.end(), [&](const auto& of) { return of.rank == rank; });
    int64_t begin = 0;  // of a source's rows, among all of the expert
    for (size_t source = 0; source < rows_of_expert_by_source.size(); ++source) {
      const int64_t end = begin + rows_of_expert_by_source[source][expert];
      rows[source * slots + slot] = std::max<int64_t>(0, std::min(end, share->end) - std::max(begin, share->begin));
      begin = end;
    }
  }
  return rows;
}

at::Tensor rows_to_slots(const std::vector<std::vector<int64_t>>& rows_of_expert_by_source, const SpillPlan& spill,
                         int source) {
  std::vector<int64_t> rows;
  const auto ranks = static_cast<int>(rows_of_expert_by_source.size());
  for (int rank = 0; rank < ranks; ++rank) {
    const std::vector<int64_t> of_rank = rows_of_slots(rows_of_expert_by_source, spill, rank);
    const auto slots = static_cast<int64_t>(of_rank.size()) / ranks;
    rows.insert(rows.end(), of_rank.begin() + source * slots, of_rank.begin() + (source + 1) * slots);
  }
  return at::tensor(at::IntArrayRef(rows), at::kLong);
}

}  // namespace conclave
