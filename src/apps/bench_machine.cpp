// conclave bench machine: a device description of this machine, for `conclave plan --device`.
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <iostream>
#include <memory>

#include "apps/bench.h"
#include "apps/command.h"
#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "benchmarks/machine_benchmark.h"
#include "metrics/running_memory.h"
#include "planner/paper_step.h"

namespace conclave {
namespace {

constexpr double unit = 1e9;  // of operations and bytes, a second on paper

// What a step costs, whatever the machine: seconds of it are thousand millions of operations and bytes.
PlannedTime costs_of(const CheckedJob& checked) {
  DeviceDescription device;
  device.device.kind = at::kCPU;
  device.compute = {unit, unit, unit, 1, 1};
  device.memory = {1e18, 0, unit, unit, unit};
  device.network = {1 << 20, 0, 1e30, 0, 1e30};
  CheckedJob job = checked;
  choose_dispatch(job, false);
  return plan_step(plan_rank(job, 0, device, std::make_shared<AssumedRouting>(job, 0, 1))).time;
}

double seconds_in(const StepProfile& profile, std::initializer_list<Phase> phases) {
  double seconds = 0;
  for (const Phase phase : phases) seconds += profile.total.seconds[static_cast<size_t>(phase)];
  return seconds;
}

double product_rate(const CheckedJob& job, const StepProfile& profile) {
  return unit * costs_of(job).products / seconds_in(profile, {Phase::products});
}

// To four digits: no measurement has more.
double rounded(double value) {
  return std::stod(fmt::format("{:.4g}", value));
}

DeviceDescription description_of(const MachineTimes& times, double memory_bytes, double reserved) {
  const PlannedTime costs = costs_of(times.job_fp32);
  const StepProfile& step = times.step_fp32;
  const double products = product_rate(times.job_fp32, step);
  const double peak = std::max(times.peak_fp32, products);
  const double attention = unit * costs.attention / seconds_in(step, {Phase::attention});
  DeviceDescription device;
  device.device.kind = at::kCPU;
  device.compute.fp32_flops = peak;
  device.compute.product_efficiency = products / peak;
  device.compute.attention_efficiency = std::min(1.0, attention / peak);
  if (times.step_bf16)
    device.compute.bf16_flops = product_rate(*times.job_bf16, *times.step_bf16) / device.compute.product_efficiency;
  device.memory.bytes = memory_bytes;
  device.memory.reserved_bytes = reserved;
  device.memory.bandwidth =
      unit * costs.memory_passes / seconds_in(step, {Phase::computing, Phase::permute, Phase::kernels});
  device.memory.host_bandwidth = times.offload_bytes_per_second;
  device.memory.optimizer_bandwidth = unit * costs.optimizer / seconds_in(step, {Phase::optimizer});
  const LinkTimes nothing_sent{1e-6, 1e10};
  const LinkTimes within = times.within_host.value_or(times.across_hosts.value_or(nothing_sent));
  const LinkTimes across = times.across_hosts.value_or(within);
  device.network = {times.ranks_per_host, within.latency, within.bytes_per_second, across.latency,
                    across.bytes_per_second};
  for (double* value : {&device.compute.fp32_flops, &device.compute.bf16_flops, &device.compute.product_efficiency,
                        &device.compute.attention_efficiency, &device.memory.bytes, &device.memory.reserved_bytes,
                        &device.memory.bandwidth, &device.memory.host_bandwidth, &device.memory.optimizer_bandwidth,
                        &device.network.node_latency, &device.network.node_bandwidth, &device.network.cluster_latency,
                        &device.network.cluster_bandwidth})
    *value = rounded(*value);
  return device;
}

std::string heading(const MachineTimes& times, int ranks) {
  std::string text = fmt::format("# Measured by `conclave bench machine` with {}, {} on a host.\n",
                                 ranks == 1 ? "1 rank" : fmt::format("{} ranks", ranks), times.ranks_per_host);
  if (!times.within_host)
    text += "# No two ranks were on one host: node_latency and node_bandwidth are not measured.\n";
  if (!times.across_hosts)
    text += "# All ranks were on one host: cluster_latency and cluster_bandwidth are not measured.\n";
  return text;
}

void measure(ParallelJob& job, int64_t steps, const std::string& output) {
  const double reserved = job.max_over_world({static_cast<double>(running_memory().resident_bytes)})[0];
  const MachineTimes times = time_machine(job, steps, std::filesystem::temp_directory_path());
  if (!job.is_first()) return;
  const double bytes = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  const std::string text =
      heading(times, job.world().size()) +
      print_device(description_of(times, bytes / static_cast<double>(times.ranks_per_host), reserved));
  if (output.empty())
    std::cout << text << std::flush;
  else
    write_file_atomically(output, text);
  if (!output.empty()) spdlog::info("written to {}: conclave plan JOB --device {}", output, output);
}

}  // namespace

void add_bench_machine(CLI::App& bench, int& exit_code) {
  struct Options {
    int ranks = 1;
    int64_t steps = 20;
    std::string output;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand(
      "machine",
      "a device description of this machine's CPUs for `conclave plan --device`: what steps and links reach");
  add_ranks_option(*command, options->ranks);
  command->add_option("--steps", options->steps, "measured steps of a small model, in each precision")
      ->check(CLI::Range(3, 100'000))
      ->capture_default_str();
  command->add_option("--output", options->output, "the file to write; without it the description is printed");
  command->footer(
      "conclave bench machine --ranks 2 --output machine.yaml\n"
      "conclave plan job.yaml --world 2 --device machine.yaml\n\n"
      "Takes about a minute. Ranks share caches, memory and links, so measure with as many ranks on a host as the job "
      "will have. Started on several hosts, as a job is, it also measures the network between them.");
  command->callback([options, &exit_code] {
    exit_code = run_on_ranks(options->ranks, std::function<CheckedJob(int)>(machine_job),
                             [&](ParallelJob& job) { measure(job, options->steps, options->output); });
  });
}

}  // namespace conclave
