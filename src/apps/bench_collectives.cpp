// conclave bench collectives: what the links between a job's ranks carry.
#include <fmt/core.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "apps/bench.h"
#include "benchmarks/collective_benchmark.h"

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
  add_bench_of_parts(
      bench, exit_code, "collectives",
      "the collectives of a job's step, each alone, with the sizes that the job gives them",
      "Bytes are those that a rank sends to others. The rates are what a device description of `conclave plan "
      "--device` calls network.node_bandwidth, or cluster_bandwidth where the ranks are on several hosts.",
      [](ParallelJob& job, int64_t repeats, bool json) {
        const std::vector<TimedCollective> times = time_collectives(job, repeats);
        if (job.is_first()) (json ? print_json : print_table)(times);
      });
}

}  // namespace conclave
