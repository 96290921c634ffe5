// What a machine's CPUs reach, as the ranks of a job meet it: the steps of a small model, the links between ranks, and
// where activations are offloaded. `conclave bench machine` makes a device description of it.
#pragma once

#include "benchmarks/step_profile.h"

namespace conclave {

// A message between ranks.
struct LinkTimes {
  double latency = 0;           // seconds before the first byte
  double bytes_per_second = 0;  // that one rank sends while all of them do
};

struct MachineTimes {
  // A step in fp32, and in bf16 where that is fast. Rank 0's are what was measured.
  CheckedJob job_fp32;
  StepProfile step_fp32;
  double peak_fp32 = 0;  // operations per second of a large product
  std::optional<CheckedJob> job_bf16;
  std::optional<StepProfile> step_bf16;
  double offload_bytes_per_second = 0;
  int64_t ranks_per_host = 1;
  std::optional<LinkTimes> within_host, across_hosts;  // null: no two ranks were connected so
};

// A job without a file that any machine can run, for so many ranks.
CheckedJob machine_job(int world);

// Collective. `folder`: where scratch files of offloaded activations would lie.
MachineTimes time_machine(ParallelJob& job, int64_t steps, const std::filesystem::path& folder);

}  // namespace conclave
