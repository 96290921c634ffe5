#include "apps/command.h"

#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include "base/error.h"
#include "base/log.h"
#include "comm/device.h"
#include "comm/launch.h"
#include "comm/process.h"
#include "memory/memory_category.h"

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
bool speaks_for_all(const Process& process, const std::exception& error) {
  if (process.rank == 0) return true;
  const auto* lost = dynamic_cast<const PeerLostError*>(&error);
  if (lost == nullptr || lost->speaker() == 0) return false;
  return process.rank == lost->speaker() || process.local_rank == 0;
}

}  // namespace

void add_job_options(CLI::App& command, JobOptions& options) {
  command.add_option("job", options.file, "the job file (YAML or JSON)")->required();
  command
      .add_option("--set", options.overrides, "a key of the job with another value: section.key=value; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
}

void add_ranks_option(CLI::App& command, int& ranks) {
  command
      .add_option("--ranks", ranks,
                  "start this many ranks on this machine (with torchrun); without it this process is the only rank, "
                  "or the one that torchrun, srun or mpirun made it")
      ->check(CLI::Range(1, 1024));
}

int report_error(const std::exception& error, bool print) {
  int code = exit_failure;
  if (dynamic_cast<const UserError*>(&error)) code = exit_user_error;
  if (dynamic_cast<const PeerLostError*>(&error)) code = exit_peer_lost;
  if (print) std::cerr << "error: " << error.what() << std::endl;
  return code;
}

int run_on_ranks(int ranks, const std::function<Job()>& read, const std::function<void(ParallelJob&)>& body) {
  const Process process = process_from_environment();
  set_up_logging(process.rank, process.world_size);
  if (process.launcher == Launcher::none && ranks > 1) {
    check_job(read(), ranks);
    return launch_local_ranks({ranks, command_of_a_rank(), ""});
  }

  install_counting_allocator();
  set_threads(process);
  std::optional<World> world;
  try {
    if (process.launcher != Launcher::none && ranks > 1 && ranks != process.world_size)
      user_error("--ranks is {}, but the launcher started {} ranks. Leave --ranks out.", ranks, process.world_size);
    CheckedJob checked = check_job(read(), process.world_size);
    WorldOptions options;
    options.device = choose_device(checked.job.run.device, process);
    options.host_staged = options.device.is_cuda() && ranks_share_gpus();
    options.timeout = std::chrono::seconds(checked.job.run.timeout_seconds);
    // A silent rank is lost after half a minute, or after the time-out where that is shorter (one beat a second).
    options.watchdog.lost_after_beats = static_cast<int>(std::clamp<int64_t>(checked.job.run.timeout_seconds, 5, 30));
    world.emplace(process, options);
    ParallelJob job(std::move(checked), *world);
    spdlog::info("world size {}\n{}", job.layout().world_size(), describe(job.layout()));
    body(job);
    world->finish();
    return exit_success;
  } catch (const std::exception& error) {
    // A mistake that every rank finds is printed by rank 0 alone; one that a single rank finds reaches rank 0 by
    // stop().
    if (world) world->stop(error.what());
    return report_error(error, speaks_for_all(process, error));
  }
}

}  // namespace conclave
