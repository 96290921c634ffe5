// How the experts' rows are gone through, one expert after the other, in chunks.
#pragma once

#include <vector>

#include "base/expert_chunk.h"
#include "moe/experts.h"

namespace conclave {

// Rows of one expert that are computed at once.
struct ExpertChunk {
  int64_t expert = 0;
  int64_t begin = 0;  // among all rows
  int64_t rows = 0;
  bool first_of_expert = true;
};

// Of these rows. Every expert has one at least: without rows it still gets its gradient, zero.
std::vector<ExpertChunk> chunks_of(const at::Tensor& row_RH, const std::vector<int64_t>& rows_per_expert);

int64_t most_rows(const std::vector<ExpertChunk>& chunks);

// The matrices of the expert at a place among a rank's own and its guests.
at::Tensor of_expert(const at::Tensor& own_LXY, const at::Tensor& guest_GXY, int64_t place);

// Where the gradient of the chunk's expert goes, and whether it is added to what is there.
Gradient gradient_of(const Gradient& own_LXY, const Gradient& guest_GXY, const ExpertChunk& chunk);

}  // namespace conclave
