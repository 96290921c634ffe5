// Consecutive parts of a rank's tokens that are dispatched one after the other. All ranks of an expert group have the
// same number of parts.
#pragma once

#include <vector>

#include "comm/communicator.h"
#include "moe/choices.h"

namespace conclave {

// `parts` as equal as can be, one at least.
std::vector<TokenPart> equal_parts(int64_t tokens, int64_t parts);

// As few parts as keep every rank of the group at or below `factor` times the mean rows of a rank at once, up to what
// one sixty-fourth of the tokens brings. Collective over `expert`: one
// all-reduce of 64 x ranks integers.
std::vector<TokenPart> parts_within(double factor, const Choices& choices, int64_t experts, Communicator& expert);

namespace detail {
// The division itself: rows_by_block[b][r], rows that block b of the tokens brings to rank r, over all sources.
// Gives the first block of each part.
std::vector<int64_t> first_blocks_of_parts(const std::vector<std::vector<int64_t>>& rows_by_block, double factor);
}  // namespace detail

}  // namespace conclave
