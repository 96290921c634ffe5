#include "planner/layout_search.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "base/error.h"

namespace conclave {
namespace {

std::vector<int64_t> divisors(int64_t number) {
  std::vector<int64_t> divisors;
  for (int64_t candidate = 1; candidate <= number; ++candidate)
    if (number % candidate == 0) divisors.push_back(candidate);
  return divisors;
}

struct MemoryPolicy {
  const char* name;
  ActivationCheckpointing checkpointing;
  bool offloading;
};

constexpr MemoryPolicy policies[] = {
    {"none", ActivationCheckpointing::none, false},          {"selective", ActivationCheckpointing::selective, false},
    {"selective", ActivationCheckpointing::selective, true}, {"full", ActivationCheckpointing::full, false},
    {"full", ActivationCheckpointing::full, true},
};

LayoutOption try_out(const CheckedJob& job, const MemoryPolicy& policy, const DeviceDescription& device,
                     double imbalance) {
  LayoutOption option;
  const ParallelConfig& parallel = job.job.parallel;
  option.settings = {fmt::format("parallel.expert_parallel_degree={}", parallel.expert_parallel_degree),
                     fmt::format("parallel.hybrid_shard_degree={}", parallel.hybrid_shard_degree),
                     fmt::format("parallel.reshard_after_forward={}", parallel.reshard_after_forward.text()),
                     fmt::format("memory.activation_checkpointing={}", policy.name),
                     fmt::format("memory.activation_offloading={}", policy.offloading),
                     fmt::format("data.micro_batch_size={}", job.job.data.micro_batch_size),
                     fmt::format("data.global_batch_size={}", *job.job.data.global_batch_size)};
  const PlannedRank rank =
      plan_rank(job, 0, backend_of(device, job.layout.world_size()), device.has_bf16(), assume_rows(job, imbalance));
  const PlannedMemory memory = step_memory(rank);
  option.peak_bytes = memory.peak_of.total;
  option.peak_moment = memory.moment;
  option.left_bytes = device.usable_bytes() - static_cast<double>(memory.peak_of.total);
  option.time = step_time(rank, device);
  return option;
}

// The job's own values of what the search varies.
auto varied(const Job& job, int world) {
  const int64_t shard = job.parallel.hybrid_shard_degree == 0 ? world : job.parallel.hybrid_shard_degree;
  return std::make_tuple(job.parallel.expert_parallel_degree, shard, job.parallel.reshard_after_forward.text(),
                         job.memory.activation_checkpointing, job.memory.activation_offloading,
                         job.data.micro_batch_size);
}

// The first line of a refusal, without "error: ".
std::string reason_of(const UserError& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

}  // namespace

LayoutSearch search_layouts(const CheckedJob& given, const DeviceDescription& device, double imbalance) {
  const int world = given.layout.world_size();
  const int64_t sequences_of_rank = given.job.data.micro_batch_size * given.micro_steps;
  LayoutSearch search;
  for (int64_t expert : divisors(given.model.num_local_experts)) {
    for (int64_t shard : divisors(world)) {
      Job job = given.job;
      job.origins = {};
      job.parallel.expert_parallel_degree = expert;
      job.parallel.hybrid_shard_degree = shard;
      job.data.global_batch_size = sequences_of_rank * world;
      try {
        Layout(world, job.parallel, given.model.num_local_experts);
      } catch (const UserError& error) {
        search.refused.push_back(fmt::format("expert degree {}, shard degree {}: {}", expert, shard, reason_of(error)));
        continue;
      }
      for (bool reshard : {true, false}) {
        for (const MemoryPolicy& policy : policies) {
          for (int64_t micro_batch : divisors(sequences_of_rank)) {
            job.parallel.reshard_after_forward = ReshardRule(reshard);
            job.memory.activation_checkpointing = policy.checkpointing;
            job.memory.activation_offloading = policy.offloading;
            job.data.micro_batch_size = micro_batch;
            LayoutOption option = try_out(check_job(job, given.model, world), policy, device, imbalance);
            option.is_given = varied(job, world) == varied(given.job, world);
            (option.left_bytes >= 0 ? search.fit : search.too_large).push_back(std::move(option));
          }
        }
      }
    }
  }
  std::stable_sort(search.fit.begin(), search.fit.end(), [](const LayoutOption& a, const LayoutOption& b) {
    return std::make_tuple(a.time.step_seconds, -a.left_bytes) < std::make_tuple(b.time.step_seconds, -b.left_bytes);
  });
  std::stable_sort(search.too_large.begin(), search.too_large.end(),
                   [](const LayoutOption& a, const LayoutOption& b) { return a.left_bytes > b.left_bytes; });
  return search;
}

}  // namespace conclave
