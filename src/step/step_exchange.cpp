#include "step/step_exchange.h"

#include <ATen/ATen.h>

#include <bit>

#include "kernels/values.h"

namespace conclave {

RankExtremes highest_over_ranks(ParallelJob& job, const RankExtremes& own) {
  using Numbers = std::array<double, sizeof(RankExtremes) / sizeof(double)>;
  auto numbers = std::bit_cast<Numbers>(own);
  const std::vector<double> highest = job.max_over_world({numbers.begin(), numbers.end()});
  std::copy(highest.begin(), highest.end(), numbers.begin());
  return std::bit_cast<RankExtremes>(numbers);
}

RecordedRows gather_rows(ParallelJob& job, const StepReport& report) {
  const auto ranks = static_cast<int64_t>(job.world().size());
  const at::Tensor own = at::stack(report.own_rows_LE).view({1, -1});
  const int64_t received = job.is_first() ? ranks : 0;
  at::Tensor all = at::empty({received, own.size(1)}, own.options());
  std::vector<int64_t> sent(static_cast<size_t>(ranks), 0);
  sent[0] = 1;
  job.axes()
      .world()
      .all_to_all(all, own, std::vector<int64_t>(static_cast<size_t>(ranks), job.is_first() ? 1 : 0), std::move(sent))
      .wait();
  RecordedRows rows;
  rows.micro_steps = static_cast<int64_t>(report.own_rows_LE.size());
  rows.ranks = ranks;
  rows.tokens = job.checked().tokens_per_rank();
  if (!job.is_first()) return rows;
  all = to_host(all).contiguous();
  rows.of_source.assign(all.const_data_ptr<int32_t>(), all.const_data_ptr<int32_t>() + all.numel());
  return rows;
}

}  // namespace conclave
