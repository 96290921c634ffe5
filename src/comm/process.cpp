#include "comm/process.h"

#include "base/error.h"
#include "comm/environment.h"
#include "comm/mpi_process.h"
#include "comm/slurm_process.h"

namespace conclave {
namespace {

// launch_local_ranks() sets all of them.
Process from_conclave() {
  Process process;
  process.launcher = Launcher::conclave;
  process.rank = process.local_rank = required_count("RANK", "--ranks", "CONCLAVE_MEETING");
  process.world_size = process.local_world_size = required_count("WORLD_SIZE", "--ranks", "CONCLAVE_MEETING");
  process.meeting = *variable("CONCLAVE_MEETING");
  check_place(process, "RANK and WORLD_SIZE");
  return process;
}

// An IPv6 address may stand in brackets, as in a URL.
std::string without_brackets(const std::string& address) {
  return address.starts_with('[') && address.ends_with(']') ? address.substr(1, address.size() - 2) : address;
}

// RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are all that PyTorch's env:// asks for.
Process from_torchrun() {
  Process process;
  process.launcher = Launcher::torchrun;
  process.rank = required_count("RANK", "torchrun", "WORLD_SIZE");
  process.world_size = required_count("WORLD_SIZE", "torchrun", "RANK");
  process.place_is_known = process.world_size == 1 || (variable("LOCAL_RANK") && variable("LOCAL_WORLD_SIZE"));
  if (process.place_is_known) {
    process.local_rank = count_in("LOCAL_RANK").value_or(0);
    process.local_world_size = count_in("LOCAL_WORLD_SIZE").value_or(1);
  }
  check_place(process, "RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE");
  if (process.is_single()) return process;
  if (!variable("MASTER_ADDR") || !variable("MASTER_PORT"))
    user_error(
        "RANK and WORLD_SIZE are set, but {} is not: the ranks cannot find each other. Start them by torchrun, or set "
        "MASTER_ADDR and MASTER_PORT to the address and a free port of rank 0.",
        variable("MASTER_ADDR") ? "MASTER_PORT" : "MASTER_ADDR");
  process.master_address = without_brackets(*variable("MASTER_ADDR"));
  process.master_port = port_in("MASTER_PORT");
  process.restart_count = count_in("TORCHELASTIC_RESTART_COUNT").value_or(0);
  process.launcher_serves_store = !process.is_one_host() && variable("TORCHELASTIC_USE_AGENT_STORE") == "True";
  if (process.is_one_host()) process.meeting = fmt::format("port/{}/{}", process.master_port, process.restart_count);
  return process;
}

// RANK alone is a name that anything may use; with WORLD_SIZE it is PyTorch's pair.
bool has_torchruns_variables() {
  return variable("WORLD_SIZE") ||
         (variable("RANK") && first_set({"MASTER_ADDR", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"}));
}

}  // namespace

void check_place(const Process& process, const char* names) {
  const bool holds = process.world_size >= 1 && process.rank < process.world_size && process.local_world_size >= 1 &&
                     process.local_rank < process.local_world_size && process.local_world_size <= process.world_size;
  if (!holds)
    user_error(
        "the environment variables {} contradict each other: rank {} of {}, on this host {} of {}. Start all ranks by "
        "one launcher.",
        names, process.rank, process.world_size, process.local_rank, process.local_world_size);
}

Process process_from_environment(bool starts_ranks) {
  if (variable("CONCLAVE_MEETING")) return from_conclave();
  if (has_torchruns_variables()) return from_torchrun();
  // mpirun starts its ranks by srun, whose variables then are of mpirun's own processes.
  if (const auto process = process_from_mpi()) return *process;
  if (const auto process = process_from_slurm(starts_ranks)) return *process;
  refuse_unsized_launcher();
  return {};
}

}  // namespace conclave
