// Who is dropped, of all tokens in one process, by sorting: the oracle of moe/capacity.h.
#pragma once

#include <ATen/ATen.h>

#include "moe/capacity.h"

namespace conclave::reference {

// Choices and their scores [T,K] in the order of the data's stream.
inline at::Tensor apply_capacity(const at::Tensor& expert_of_choice_TK, const at::Tensor& score_TK, int64_t experts,
                                 const CapacityOptions& options) {
  const int64_t tokens = expert_of_choice_TK.size(0), top_k = expert_of_choice_TK.size(1);
  const int64_t capacity = expert_capacity(options.factor, tokens, top_k, experts);
  at::Tensor kept = at::full({tokens * top_k}, -1, at::kInt);
  for (int64_t expert = 0; expert < experts; ++expert) {
    at::Tensor choice = expert_of_choice_TK.flatten().eq(expert).nonzero().flatten();
    if (options.policy == DropPolicy::probability) {
      const at::Tensor order = std::get<1>(
          at::sort(score_TK.flatten().index_select(0, choice), /*stable=*/true, /*dim=*/0, /*descending=*/true));
      choice = choice.index_select(0, order);
    }
    kept.index_fill_(0, choice.narrow(0, 0, std::min(capacity, choice.size(0))), expert);
  }
  return kept.view({tokens, top_k});
}

}  // namespace conclave::reference
