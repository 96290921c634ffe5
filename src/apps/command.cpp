#include "apps/command.h"

#include <ATen/Parallel.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include "apps/torchrun_word.h"
#include "base/broken_pipes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/printable.h"
#include "comm/launch.h"
#include "comm/mpi_process.h"
#include "comm/process.h"
#include "config/job_difference.h"
#include "device/choose_device.h"
#include "device/device.h"
#include "memory/memory_category.h"
#include "run/job_and_model.h"

namespace conclave {
namespace {

// This command line without --ranks, for the ranks themselves.
std::vector<std::string> command_of_a_rank() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  std::vector<std::string> command;
  std::istringstream arguments(text);
  for (std::string argument; std::getline(arguments, argument, '\0');) {
    if (argument == "--ranks") {
      std::getline(arguments, argument, '\0');  // its value
      continue;
    }
    if (argument.starts_with("--ranks=")) continue;
    command.push_back(argument);
  }
  command.at(0) = std::filesystem::read_symlink("/proc/self/exe");
  return command;
}

// Rank 0 speaks for all. Of its own loss it cannot speak: then the lowest of those that are left does. What they know
// of each other was in the store, which rank 0 serves and which may be lost with it; so that a whole host's loss is not
// passed over in silence, the first rank of every other host speaks too.
bool speaks_for_all(const Process& process, bool has_met, const std::exception& error) {
  if (process.rank == 0) return true;
  // What it found before it met the others, they may not have found on their hosts.
  if (!has_met && process.local_rank == 0) return true;
  const auto* lost = dynamic_cast<const PeerLostError*>(&error);
  if (lost == nullptr || lost->speaker() == 0) return false;
  return process.rank == lost->speaker() || process.local_rank == 0;
}

void warn_of_unknown_launcher() {
  const std::string sign = sign_of_unknown_launcher();
  if (sign.empty()) return;
  spdlog::warn(
      "this process takes itself for the only rank, but {} in its environment looks as if a launcher that Conclave "
      "does "
      "not know had started it as one of several. If so, set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each",
      sign);
}

}  // namespace

void add_job_options(CLI::App& command, JobOptions& options) {
  command.add_option("job", options.file, "the job file (YAML or JSON); - is standard input")->required();
  command
      .add_option("--set", options.overrides, "a key of the job with another value: section.key=value; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
}

void add_ranks_option(CLI::App& command, int& ranks) {
  command
      .add_option("--ranks", ranks,
                  "start this many ranks on this machine; without it this process is the only rank, or the one that "
                  "torchrun, srun or mpirun made it")
      ->check(CLI::Range(1, 1024));
}

void tell_warnings(const CheckedJob& job) {
  for (const std::string& warning : job.warnings) std::cerr << "warning: " << warning << std::endl;
}

int report_error(const std::exception& error, bool print) {
  int code = exit_failure;
  if (dynamic_cast<const UserError*>(&error)) code = exit_user_error;
  if (dynamic_cast<const PeerLostError*>(&error)) code = exit_peer_lost;
  if (print) std::cerr << "error: " << printable(error.what(), LineFeeds::kept) << std::endl;
  return code;
}

int run_on_ranks(int ranks, const std::function<Job()>& read, const std::function<void(ParallelJob&)>& body,
                 const std::function<void(const CheckedJob&)>& check) {
  return run_on_ranks(
      ranks, [&](int world) { return check_job_and_model(read(), world); }, body, check);
}

int run_on_ranks(int ranks, const std::function<CheckedJob(int world)>& make,
                 const std::function<void(ParallelJob&)>& body, const std::function<void(const CheckedJob&)>& check) {
  ignore_broken_pipes();
  const Process process = process_from_environment(/*starts_ranks=*/ranks > 1);
  set_up_logging(process.rank, process.world_size);
  if (process.is_single() && ranks > 1) {
    check(make(ranks));
    return launch_local_ranks({ranks, command_of_a_rank()});
  }
  if (process.launcher == Launcher::none) warn_of_unknown_launcher();

  install_counting_allocator();
  std::optional<World> world;
  try {
    if (ranks > 1 && ranks != process.world_size)
      user_error("--ranks is {}, but the launcher started {} ranks. Leave --ranks out.", ranks, process.world_size);
    CheckedJob checked = make(process.world_size);
    WorldOptions options;
    options.choose = [&](const Process& placed, WorldOptions& chosen) {
      chosen.device = choose_device(checked.job.run.device, placed);
      device_of(chosen.device).take(chosen.device, placed, chosen);
    };
    options.must_agree = values_but_places_of(checked.job);
    options.must_agree["the version of Conclave"] = CONCLAVE_VERSION;
    options.timeout = std::chrono::seconds(checked.job.run.timeout_seconds);
    // A silent rank is lost after half a minute, or after the time-out where that is shorter (one beat a second).
    options.watchdog.lost_after_beats = static_cast<int>(std::clamp<int64_t>(checked.job.run.timeout_seconds, 5, 30));
    world.emplace(process, options);
    ParallelJob job(std::move(checked), *world);
    for (const std::string& adaptation : job.adaptations()) spdlog::info(adaptation);
    if (job.is_first())
      for (const std::string& warning : job.checked().warnings) spdlog::warn(warning);
    spdlog::info("world size {}\n{}", job.layout().world_size(), describe(job.layout()));
    if (world->device().is_cpu()) spdlog::info("this rank computes with {} threads", at::get_num_threads());
    body(job);
    world->finish();
    return exit_success;
  } catch (const std::exception& error) {
    // A mistake that every rank finds is printed by rank 0 alone; one that a single rank finds reaches rank 0 by
    // stop().
    if (world) world->stop(error.what());
    leave_word_for_torchrun(printable(error.what(), LineFeeds::kept));
    return report_error(error, speaks_for_all(process, world.has_value(), error));
  }
}

}  // namespace conclave
