#include "benchmarks/collective_benchmark.h"

#include <ATen/ATen.h>

#include <map>

#include "benchmarks/stopwatch.h"
#include "kernels/row_message.h"
#include "mesh/collective_bytes.h"
#include "moe/balance_message.h"

namespace conclave {
namespace {

// The largest group of parameters of each axis that shards some.
struct LargestGroup {
  std::string unit;
  const FlatParameter* group = nullptr;
};

std::map<std::string, LargestGroup> largest_groups(ParallelJob& job) {
  std::map<std::string, LargestGroup> largest;
  for (const Unit* unit : job.model().units()) {
    for (const FlatParameter& group : unit->groups()) {
      LargestGroup& found = largest[group.shard_axis().name()];
      if (found.group == nullptr || group.layout().numel() > found.group->layout().numel())
        found = {unit->name(), &group};
    }
  }
  return largest;
}

void time_sharding(ParallelJob& job, int64_t repeats, Stopwatch& stopwatch, std::vector<TimedCollective>& timed) {
  const auto options = at::device(job.device());
  const at::ScalarType reduced = job.model().options().reduce_dtype;
  for (const auto& [axis, largest] : largest_groups(job)) {
    Communicator& shard = largest.group->shard_axis();
    if (shard.size() == 1) continue;
    const int64_t whole = largest.group->layout().numel(), part = largest.group->layout().shard_numel();
    const at::Tensor parameters = at::zeros({whole}, options.dtype(job.compute()));
    const at::Tensor own = at::zeros({part}, parameters.options());
    const int64_t item = parameters.element_size();
    timed.push_back({axis, "all_gather", "parameters of " + largest.unit,
                     bytes_to_all_others(part * item, shard.size()),
                     stopwatch.median(repeats, [&](int64_t) { shard.all_gather(parameters, own).wait(); })});
    const at::Tensor gradients = at::zeros({whole}, options.dtype(reduced));
    const at::Tensor sums = at::zeros({part}, gradients.options());
    timed.push_back({axis, "reduce_scatter", "gradients of " + largest.unit,
                     bytes_to_all_others(part * gradients.element_size(), shard.size()),
                     stopwatch.median(repeats, [&](int64_t) { shard.reduce_scatter(sums, gradients).wait(); })});
  }
}

void time_dispatch(ParallelJob& job, int64_t repeats, Stopwatch& stopwatch, std::vector<TimedCollective>& timed) {
  Communicator& expert = job.axes().of(Axis::expert);
  if (expert.size() == 1) return;
  const ModelConfig& model = job.model_config();
  const int64_t choices = job.job().data.micro_batch_size * job.job().data.sequence_length * model.top_k();
  const int64_t each = (choices + expert.size() - 1) / expert.size();
  const int64_t width = row_message_bytes(model.hidden_size, static_cast<int64_t>(at::elementSize(job.compute())));
  const at::Tensor sent = at::zeros({each * expert.size(), width}, at::device(job.device()).dtype(at::kByte));
  const at::Tensor received = at::zeros_like(sent);
  const std::vector<int64_t> splits(static_cast<size_t>(expert.size()), each);
  timed.push_back(
      {expert.name(), "all_to_all", "routed rows of a layer", (expert.size() - 1) * each * width,
       stopwatch.median(repeats, [&](int64_t) { expert.all_to_all(received, sent, splits, splits).wait(); })});
}

void time_statistics(ParallelJob& job, int64_t repeats, Stopwatch& stopwatch, std::vector<TimedCollective>& timed) {
  Communicator& world = job.axes().world();
  if (world.size() == 1) return;
  const ModelConfig& model = job.model_config();
  const int64_t count = balance_message_numbers(model.mixtures(), model.experts());
  const at::Tensor statistics = at::zeros({count}, at::device(job.device()).dtype(at::kDouble));
  timed.push_back({world.name(), "all_reduce", "routing statistics",
                   all_reduce_bytes(count, statistics.element_size(), world.rank(), world.size()),
                   stopwatch.median(repeats, [&](int64_t) { world.all_reduce(statistics).wait(); })});
}

}  // namespace

std::vector<TimedCollective> time_collectives(ParallelJob& job, int64_t repeats) {
  const at::NoGradGuard no_grad;
  Stopwatch stopwatch(job);
  std::vector<TimedCollective> timed;
  time_sharding(job, repeats, stopwatch, timed);
  time_dispatch(job, repeats, stopwatch, timed);
  time_statistics(job, repeats, stopwatch, timed);
  return timed;
}

}  // namespace conclave
