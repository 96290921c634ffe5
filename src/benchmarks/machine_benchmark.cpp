#include "benchmarks/machine_benchmark.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "benchmarks/stopwatch.h"
#include "device/device.h"
#include "step/compute_precision.h"

namespace conclave {
namespace {

constexpr int64_t small_message = 64, large_message = int64_t{8} << 20;  // bytes to each other rank
constexpr int64_t untimed_steps = 3;

// Large enough that products and passes reach what they reach in a model worth training.
ModelConfig model_of_machine() {
  AttentionConfig attention;
  attention.heads = 8;
  attention.key_value_heads = 2;
  attention.head_dim = attention.value_head_dim = 64;
  MixtureConfig mixture;
  mixture.experts = 8;
  mixture.top_k = 2;
  mixture.intermediate = 1792;
  ModelConfig model;
  model.vocab_size = 8192;
  model.hidden_size = 512;
  model.max_position_embeddings = 512;
  model.rotary.dims = 64;
  model.layers.assign(4, {attention, mixture});
  return model;
}

CheckedJob job_of(int world, Precision precision) {
  Job job;
  job.run.device = WantedDevice::cpu;
  job.data.sequence_length = 512;
  job.data.micro_batch_size = 1;
  job.precision.compute = precision;
  job.checkpoint.every_minutes = 0;
  return check_job(std::move(job), model_of_machine(), world);
}

StepProfile profile(const CheckedJob& checked, World& world, int64_t steps) {
  ParallelJob job(checked, world);
  at::Generator generator = at::detail::createCPUGenerator(1 + static_cast<uint64_t>(job.rank()));
  const int64_t batch = job.job().data.micro_batch_size, sequence = job.job().data.sequence_length;
  const auto tokens = [&] {
    return at::randint(job.model_config().vocab_size, {batch * sequence}, generator, at::kLong).to(job.device());
  };
  std::vector<int64_t> samples(static_cast<size_t>(batch));
  std::iota(samples.begin(), samples.end(), job.rank() * batch);
  const MicroBatch micro_batch{tokens(), tokens(), batch, sequence, samples, {}};
  const std::vector<int64_t> targets = {batch * sequence * job.world().size() * job.micro_steps()};
  return profile_steps(job, {.steps = steps, .untimed = untimed_steps, .kernels = true},
                       {[&] { return micro_batch; }, [&](int64_t) { return targets; }});
}

// This rank's group of those for which `key` is the same.
AxisGroup group_of(const std::vector<int>& key_of_rank, int rank) {
  AxisGroup group;
  for (int other = 0; other < static_cast<int>(key_of_rank.size()); ++other) {
    if (key_of_rank[other] != key_of_rank[rank]) continue;
    if (other == rank) group.index = group.size();
    group.ranks.push_back(other);
  }
  return group;
}

std::optional<LinkTimes> time_link(ParallelJob& job, const AxisGroup& group, const std::string& name) {
  const auto ranks = job.max_over_world({static_cast<double>(group.size())})[0];
  const auto link = job.world().communicator(group, name);
  Stopwatch stopwatch(job);
  const auto bytes = [&](int64_t count) { return at::zeros({count}, at::device(job.device()).dtype(at::kByte)); };
  const at::Tensor few = bytes(small_message), few_of_all = bytes(small_message * group.size());
  const double short_time = stopwatch.median(200, [&](int64_t) { link->all_gather(few_of_all, few).wait(); });
  // As parameters and gradients travel: gathered as they are, summed in fp32.
  const auto floats = at::device(job.device()).dtype(at::kFloat);
  const at::Tensor own = at::zeros({large_message / 4}, floats),
                   all = at::zeros({large_message / 4 * group.size()}, floats);
  double seconds = stopwatch.median(15, [&](int64_t) { link->all_gather(all, own).wait(); });
  seconds += stopwatch.median(15, [&](int64_t) { link->reduce_scatter(own, all).wait(); });
  if (ranks < 2) return std::nullopt;
  const double others = ranks - 1;
  return LinkTimes{short_time / others, 2 * others * static_cast<double>(large_message) / (seconds - 2 * short_time)};
}

double time_offload(ParallelJob& job, const std::filesystem::path& folder) {
  constexpr int64_t slots = 4;
  const auto medium = device_of(job.device()).make_offload_medium(folder);
  medium->reserve(slots, large_message);
  at::Tensor tensor = at::zeros({large_message}, at::device(job.device()).dtype(at::kByte));
  Stopwatch stopwatch(job);
  const double seconds = stopwatch.median(20, [&](int64_t i) {
    medium->write(i % slots, tensor)();
    medium->read(i % slots, tensor)();
  });
  return 2.0 * static_cast<double>(large_message) / seconds;
}

}  // namespace

CheckedJob machine_job(int world) {
  return job_of(world, Precision::fp32);
}

MachineTimes time_machine(ParallelJob& job, int64_t steps, const std::filesystem::path& folder) {
  const at::NoGradGuard no_grad;
  World& world = job.world();
  const Device& device = device_of(job.device());
  MachineTimes times{job_of(world.size(), Precision::fp32), {}, 0, {}, {}, 0, 1, {}, {}};
  times.step_fp32 = profile(times.job_fp32, world, steps);
  times.peak_fp32 = measure_product_rate(at::kFloat, job.device());
  // All ranks, or none.
  if (job.max_over_world({device.has_fast_bf16() ? 0.0 : 1.0})[0] == 0) {
    times.job_bf16 = job_of(world.size(), Precision::bf16);
    times.step_bf16 = profile(*times.job_bf16, world, steps);
  }
  times.offload_bytes_per_second = time_offload(job, folder);

  const std::vector<int>& host_of_rank = world.host_of_rank();
  std::vector<int> place_of_rank(host_of_rank.size());
  for (size_t rank = 0; rank < host_of_rank.size(); ++rank) {
    const auto end = host_of_rank.begin() + static_cast<std::ptrdiff_t>(rank);
    place_of_rank[rank] = static_cast<int>(std::count(host_of_rank.begin(), end, host_of_rank[rank]));
    times.ranks_per_host = std::max<int64_t>(times.ranks_per_host, place_of_rank[rank] + 1);
  }
  times.within_host = time_link(job, group_of(host_of_rank, job.rank()), "within-host");
  times.across_hosts = time_link(job, group_of(place_of_rank, job.rank()), "across-hosts");
  return times;
}

}  // namespace conclave
