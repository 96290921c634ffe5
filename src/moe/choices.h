// The choices of a rank's tokens, and how many rows they make: the one place where it shows that on paper nobody
// chooses. There the rows are assumed, or come from a record.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "moe/token_part.h"

namespace conclave {

// Rows that the tokens of each rank of the expert axis have for each expert: [ranks][E].
using RowsBySource = std::vector<std::vector<int64_t>>;

struct Choices {
  // expert [T,K] int32: global expert numbers; -1: the choice is dropped, no row is made of it.
  Choices(at::Tensor expert_TK = {}, std::shared_ptr<const RowsBySource> assumed = {})
      : expert_TK(std::move(expert_TK)), assumed(std::move(assumed)) {}

  at::Tensor expert_TK;
  std::shared_ptr<const RowsBySource> assumed;  // null: the choices themselves say

  int64_t tokens() const { return expert_TK.size(0); }
  int64_t top_k() const { return expert_TK.size(1); }
  // Of a part of the tokens; assumed rows are spread evenly over them.
  Choices part(const TokenPart& part) const;
  // Of other tensors of choices, by the same assumption: after their ranks' tokens were shuffled.
  Choices evened(at::Tensor expert_TK) const;

  // What the host finds on paper, int64, undefined where the choices say. Rows of all experts from one rank [E], of
  // `count` experts from all ranks together [count], and by source [ranks * count].
  at::Tensor assumed_rows_of(int source) const;
  at::Tensor assumed_rows_to(int64_t first, int64_t count) const;
  at::Tensor assumed_rows_by_source(int64_t first, int64_t count) const;
};

// By layer, for a run on paper.
class AssumedChoices {
 public:
  virtual ~AssumedChoices() = default;
  virtual std::shared_ptr<const RowsBySource> of_layer(int64_t layer) const = 0;
};

}  // namespace conclave
