#include "planner/planned_rank.h"

namespace conclave {

PlannedRank plan_rank(const CheckedJob& job, int rank, Backend backend, bool bf16, std::vector<RoutedRows> rows) {
  const Precision compute = job.job.precision.compute;
  const bool in_bf16 = compute == Precision::bf16 || (compute == Precision::automatic && bf16);
  return {job, rank, backend, in_bf16 ? 2 : 4, 1, plan_units(job, rank), std::move(rows)};
}

}  // namespace conclave
