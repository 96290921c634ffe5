#include "planner/layout_search.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "base/error.h"
#include "base/first_line.h"

namespace conclave {
namespace {

std::vector<int64_t> divisors(int64_t number) {
  std::vector<int64_t> divisors;
  for (int64_t candidate = 1; candidate <= number; ++candidate)
    if (number % candidate == 0) divisors.push_back(candidate);
  return divisors;
}

struct MemoryPolicy {
  ActivationCheckpointing checkpointing;
  bool offloading;
};

constexpr MemoryPolicy policies[] = {
    {ActivationCheckpointing::none, false},     {ActivationCheckpointing::selective, false},
    {ActivationCheckpointing::selective, true}, {ActivationCheckpointing::full, false},
    {ActivationCheckpointing::full, true},
};

const char* name_of(ActivationCheckpointing checkpointing) {
  switch (checkpointing) {
    case ActivationCheckpointing::none:
      return "none";
    case ActivationCheckpointing::selective:
      return "selective";
    case ActivationCheckpointing::full:
      return "full";
  }
  return "";
}

std::vector<std::string> settings_of(const CheckedJob& checked) {
  const Job& job = checked.job;
  const int64_t sequences = job.data.micro_batch_size * checked.micro_steps * checked.layout.world_size();
  return {fmt::format("parallel.expert_parallel_degree={}", job.parallel.expert_parallel_degree),
          fmt::format("parallel.hybrid_shard_degree={}", checked.layout.degree(Axis::expert_shard)),
          fmt::format("parallel.reshard_after_forward={}", job.parallel.reshard_after_forward.text()),
          fmt::format("memory.activation_checkpointing={}", name_of(job.memory.activation_checkpointing)),
          fmt::format("memory.activation_offloading={}", job.memory.activation_offloading),
          fmt::format("data.micro_batch_size={}", job.data.micro_batch_size),
          fmt::format("data.global_batch_size={}", sequences)};
}

// Without its global batch a job's micro-batch decides it: a change of one then needs the other too.
std::vector<std::string> changes_from(const CheckedJob& given, const std::vector<std::string>& settings) {
  const std::vector<std::string> before = settings_of(given);
  std::vector<std::string> changes;
  for (size_t i = 0; i < settings.size(); ++i)
    if (settings[i] != before[i]) changes.push_back(settings[i]);
  if (!given.job.data.global_batch_size && settings[5] != before[5]) changes.push_back(settings[6]);
  return changes;
}

LayoutOption try_out(CheckedJob job, const DeviceDescription& device, double imbalance) {
  choose_dispatch(job, spans_hosts(job, device.network.ranks_per_node));
  LayoutOption option;
  option.settings = settings_of(job);
  const std::vector<RankClass> classes = plan_classes(job, device, imbalance);
  const PlannedMemory& memory = classes.front().step.memory;
  option.peak_bytes = memory.peak_of.total;
  option.peak_moment = memory.moment;
  option.left_bytes = device.usable_bytes() - static_cast<double>(memory.peak_of.total);
  for (const RankClass& one : classes)  // the step is over when the busiest rank's is
    if (!one.is_at_times && one.step.time.step_seconds > option.time.step_seconds) option.time = one.step.time;
  return option;
}

// The first line of a refusal, without "error: ".
std::string reason_of(const UserError& error) {
  return first_line(error.what());
}

}  // namespace

LayoutSearch search_layouts(const CheckedJob& given, const DeviceDescription& device, double imbalance) {
  const int world = given.layout.world_size();
  const int64_t sequences_of_rank = given.job.data.micro_batch_size * given.micro_steps;
  const int64_t experts = std::max<int64_t>(given.model.experts(), 1);
  LayoutSearch search;
  for (int64_t expert : divisors(experts)) {
    Job job = given.job;
    job.origins = {};
    job.parallel.expert_parallel_degree = expert;
    job.parallel.hybrid_shard_degree = 0;
    job.data.global_batch_size = sequences_of_rank * world;
    try {
      Layout(world, job.parallel, experts);
    } catch (const UserError& error) {
      search.refused.push_back(fmt::format("expert degree {}: {}", expert, reason_of(error)));
      continue;
    }
    for (int64_t shard : divisors(world / expert)) {
      job.parallel.hybrid_shard_degree = shard;
      for (bool reshard : {true, false}) {
        for (const MemoryPolicy& policy : policies) {
          for (int64_t micro_batch : divisors(sequences_of_rank)) {
            job.parallel.reshard_after_forward = ReshardRule(reshard);
            job.memory.activation_checkpointing = policy.checkpointing;
            job.memory.activation_offloading = policy.offloading;
            job.data.micro_batch_size = micro_batch;
            CheckedJob checked = check_job(job, given.model, world);
            checked.document_tokens = given.document_tokens;
            LayoutOption option = try_out(std::move(checked), device, imbalance);
            option.changes = changes_from(given, option.settings);
            option.is_given = option.changes.empty();
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
