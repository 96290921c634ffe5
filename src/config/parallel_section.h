// The section `parallel` of the job file. The layout of the ranks.
#pragma once

#include <cstdint>

#include "config/reshard_rule.h"

namespace conclave {

class Fields;

struct ParallelConfig {
  int64_t expert_parallel_degree = 1;
  int64_t hybrid_shard_degree = 0;    // shards beside the expert axis; 0: as many as there are ranks for
  bool elastic = false;               // the degrees above are the most: on another world the nearest that fit are taken
  int64_t prefetch_units = 1;         // units gathered ahead of the one that computes; 0: none
  ReshardRule reshard_after_forward;  // which units do not stay gathered from forward to backward
};

void describe(ParallelConfig& parallel, Fields& to);

}  // namespace conclave
