// What the ranks of a job tell each other when they have met, before they share a communicator: one text of each, in
// rank order. What a group must share is decided by these, alike on every rank, and not by what one host alone sees.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <string>
#include <vector>

#include "comm/cores.h"

namespace conclave {

// Collective. `name`: of the roll call, once in a job. Throws the store's errors.
std::vector<std::string> call_roll(c10d::Store& store, int rank, int world_size, const std::string& name,
                                   const std::string& text);

// Where a rank runs, and on which cores.
struct RankPlace {
  std::string host;
  Cores cores;

  static RankPlace of_this_process();
  std::string text() const;
  static RankPlace parse(const std::string& text);
};

// Of each rank, the number of its host: 0, 1, ... in the order of their first ranks.
std::vector<int> number_hosts(const std::vector<RankPlace>& places);

}  // namespace conclave
