// conclave bench collectives: what the links between a job's ranks carry.
#include <fmt/core.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/bench.h"
#include "apps/command.h"
#include "train/collective_benchmark.h"

namespace conclave {
namespace {

void print_table(const std::vector<TimedCollective>& collectives) {
  if (collectives.empty()) fmt::print("Every axis of this layout has one rank: nothing travels.\n");
  if (collectives.empty()) return;
  fmt::print("{:<14}{:<16}{:<34}{:>14}{:>12}{:>10}\n", "axis", "collective", "of", "bytes sent", "seconds", "GB/s");
  for (const TimedCollective& timed : collectives)
    fmt::print("{:<14}{:<16}{:<34}{:>14}{:>12.6f}{:>10.3f}\n", timed.axis, timed.operation, timed.what, timed.bytes,
               timed.seconds, timed.bytes_per_second() / 1e9);
}

void print_json(const std::vector<TimedCollective>& collectives) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const TimedCollective& timed : collectives)
    list.push_back({{"axis", timed.axis},
                    {"operation", timed.operation},
                    {"what", timed.what},
                    {"bytes", timed.bytes},
                    {"seconds", timed.seconds},
                    {"bytes_per_second", timed.bytes_per_second()}});
  std::cout << nlohmann::ordered_json{{"collectives", list}}.dump() << std::endl;
}

}  // namespace

void add_bench_collectives(CLI::App& bench, int& exit_code) {
  struct Options {
    JobOptions job;
    int ranks = 1;
    int64_t repeats = 20;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand(
      "collectives", "the collectives of a job's step, each alone, with the sizes that the job gives them");
  add_job_options(*command, options->job);
  add_ranks_option(*command, options->ranks);
  command->add_option("--repeats", options->repeats, "of each collective; medians count")
      ->check(CLI::Range(1, 100'000));
  command->add_flag("--json", options->json, "print one JSON object");
  command->footer(
      "Bytes are those that a rank sends to others. The rates are what a device description of `conclave plan "
      "--device` calls network.node_bandwidth, or cluster_bandwidth where the ranks are on several hosts.");
  command->callback([options, &exit_code] {
    const auto read = [options] { return read_job(options->job.file, options->job.overrides); };
    exit_code = run_on_ranks(options->ranks, read, [options](ParallelJob& job) {
      const std::vector<TimedCollective> collectives = time_collectives(job, options->repeats);
      if (job.is_first()) (options->json ? print_json : print_table)(collectives);
    });
  });
}

}  // namespace conclave
