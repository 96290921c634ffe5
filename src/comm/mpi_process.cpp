#include "comm/mpi_process.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "base/error.h"
#include "comm/environment.h"

namespace conclave {
namespace {

struct Variables {
  const char* launcher;
  const char* rank;
  const char* size;
  const char* local_rank;
  const char* local_size;
  const char* how_to_set;  // a variable of all ranks
};

constexpr std::array known = {
    Variables{"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
              "OMPI_COMM_WORLD_LOCAL_SIZE", "-x {}={}"},
    Variables{"MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK",
              "MV2_COMM_WORLD_LOCAL_SIZE", "{}={}"},
    Variables{"MVAPICH", "MVP_COMM_WORLD_RANK", "MVP_COMM_WORLD_SIZE", "MVP_COMM_WORLD_LOCAL_RANK",
              "MVP_COMM_WORLD_LOCAL_SIZE", "-genv {} {}"},
    Variables{"Hydra", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "-genv {} {}"},
};

// Under srun --mpi=pmi2 both are set, of the same ranks; Slurm then also says where rank 0 is.
bool is_slurms(const Variables& names) {
  const auto slurm_rank = variable("SLURM_PROCID");
  const char* slurm_size = first_set({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"});
  return std::string_view(names.rank) == "PMI_RANK" && slurm_rank && slurm_rank == variable(names.rank) && slurm_size &&
         variable(slurm_size) == variable(names.size);
}

std::string setting(const Variables& names, const char* variable, const char* value) {
  return fmt::format(fmt::runtime(names.how_to_set), variable, value);
}

void find_meeting(Process& process, const Variables& names) {
  const auto job = first_set({"PMIX_NAMESPACE"});
  if (process.is_one_host() && job) process.meeting = "mpi/" + *variable(job);
  if (!process.meeting.empty()) return;
  const auto address = variable("MASTER_ADDR");
  if (!variable("MASTER_PORT") || (!address && !process.is_one_host()))
    user_error(
        "{} started this rank ({} is set), but {} is not set: the ranks cannot find each other. Give mpirun {} {}.",
        names.launcher, names.rank, variable("MASTER_PORT") ? "MASTER_ADDR" : "MASTER_PORT",
        setting(names, "MASTER_ADDR", "<host of rank 0>"), setting(names, "MASTER_PORT", "<a free port there>"));
  process.master_port = port_in("MASTER_PORT");
  process.master_address = address.value_or("127.0.0.1");
  if (process.is_one_host()) process.meeting = fmt::format("port/{}/0", process.master_port);
}

Process from_mpi(const Variables& names) {
  Process process;
  process.launcher = Launcher::mpi;
  process.rank = required_count(names.rank, names.launcher, names.size);
  process.world_size = required_count(names.size, names.launcher, names.rank);
  process.place_is_known = process.world_size == 1 || (variable(names.local_rank) && variable(names.local_size));
  if (process.place_is_known) {
    process.local_rank = count_in(names.local_rank).value_or(0);
    process.local_world_size = count_in(names.local_size).value_or(1);
  }
  check_place(process,
              fmt::format("{}, {}, {} and {}", names.rank, names.size, names.local_rank, names.local_size).c_str());
  if (!process.is_single()) find_meeting(process, names);
  return process;
}

}  // namespace

std::optional<Process> process_from_mpi() {
  for (const Variables& names : known)
    if (first_set({names.rank, names.size}) && !is_slurms(names)) return from_mpi(names);
  return {};
}

void refuse_unsized_launcher() {
  const char* rank = first_set({"PMIX_RANK", "PALS_RANKID", "FLUX_TASK_RANK", "JSM_NAMESPACE_RANK", "ALPS_APP_PE"});
  if (rank == nullptr) return;
  user_error(
      "environment variable {} is {}, so a launcher started this process as one of several ranks, but Conclave does "
      "not know how to ask that launcher how many there are. Set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for "
      "each rank, start the ranks with srun, torchrun or Open MPI's mpirun, or unset {} for a run of one rank.",
      rank, *variable(rank), rank);
}

std::string sign_of_unknown_launcher() {
  // Numbers of hosts, of nested launchers, and of what users number themselves.
  constexpr std::array harmless = {"NODE_RANK", "GROUP_RANK", "ROLE_RANK", "MACHINE_RANK"};
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view name = text.substr(0, text.find('='));
    const std::string_view value = text.substr(std::min(text.size(), name.size() + 1));
    const bool is_rank = name.ends_with("_RANK") || name.ends_with("_RANKID") || name.ends_with("_PROCID");
    const bool is_number = !value.empty() && value.find_first_not_of("0123456789") == std::string_view::npos;
    const bool is_slurm = name.starts_with("SLURM_");
    if (is_rank && is_number && !is_slurm && std::find(harmless.begin(), harmless.end(), name) == harmless.end())
      return std::string(text);
  }
  return "";
}

}  // namespace conclave
