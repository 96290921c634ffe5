// The units of a job as they lie on one rank: what is gathered, reduced and kept, in elements.
#pragma once

#include <string>
#include <vector>

#include "base/parameter_declaration.h"
#include "mesh/checked_job.h"

namespace conclave {

// The parameters of one kind of one unit.
struct PlannedGroup {
  Axis shard_axis = Axis::shard;
  Axis replica_axis = Axis::replica;
  int shard_degree = 1;
  int replica_degree = 1;
  int replica_index = 0;
  int64_t numel = 0;        // of the flat buffer on this rank, unsharded, padding included
  int64_t shard_numel = 0;  // of this rank's part
};

struct PlannedUnit {
  std::string name;
  std::vector<PlannedGroup> groups;
};

// In forward order: embedding, layers, head.
std::vector<PlannedUnit> plan_units(const CheckedJob& job, int rank);

}  // namespace conclave
