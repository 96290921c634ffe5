// One rank of a job, as the planner sees it: everything that memory, traffic and time of its steps depend on.
#pragma once

#include <vector>

#include "mesh/checked_job.h"
#include "planner/planned_units.h"
#include "planner/routed_rows.h"

namespace conclave {

// Where the engine computes and by what it communicates: which buffers beside the tensors exist.
enum class Backend {
  cpu_alone,  // no other rank is really there: one process, or the fake communicator
  cpu_gloo,   // Gloo sums in host buffers of its own
  cuda_nccl,
};

struct PlannedRank {
  CheckedJob job;
  int rank = 0;
  Backend backend = Backend::cuda_nccl;
  int64_t compute_bytes = 4;  // of an element: 4 fp32, 2 bf16
  int64_t threads = 1;        // that compute on a CPU: some buffers exist once for each
  std::vector<PlannedUnit> units;
  std::vector<RoutedRows> rows;  // of each layer

  int64_t reduce_bytes() const { return job.job.precision.reduce == Precision::bf16 ? 2 : 4; }
  bool experts_in_fp8() const { return job.job.precision.experts == ExpertPrecision::fp8; }
  size_t layers() const { return rows.size(); }
};

// `bf16`: what precision.compute: auto means there.
PlannedRank plan_rank(const CheckedJob& job, int rank, Backend backend, bool bf16, std::vector<RoutedRows> rows);

}  // namespace conclave
