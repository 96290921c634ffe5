// This process's place among the ranks of the job, as its launcher tells it by environment variables.
#pragma once

#include <string>

namespace conclave {

enum class Launcher {
  none,
  conclave,  // --ranks
  torchrun,  // or whoever else sets PyTorch's variables (env://)
  slurm,
  mpi,  // Open MPI, MVAPICH, or one with Hydra: MPICH, Intel MPI
};

struct Process {
  int rank = 0;                // in the job
  int world_size = 1;          // ranks of the job
  int local_rank = 0;          // among the ranks of this host; also the index of its GPU
  int local_world_size = 1;    // ranks of this host
  bool place_is_known = true;  // of the two above; else they are found when the ranks meet (World)
  Launcher launcher = Launcher::none;
  std::string meeting;         // where ranks of one host meet: a name of their own (host_socket.h); else empty
  std::string master_address;  // where ranks of several hosts meet: the address of the store; else perhaps empty
  int master_port = 0;
  bool launcher_serves_store = false;  // torchrun's agent serves it; else rank 0 does
  int restart_count = 0;               // torchrun's: each restart is a new job in the same store
  int cpus_per_rank = 0;               // as granted by the launcher; 0: not said

  bool is_single() const { return world_size == 1; }
  bool is_one_host() const { return place_is_known && local_world_size == world_size; }
};

// Reads the variables of `--ranks`, else PyTorch's (RANK, WORLD_SIZE, ...), else those of an MPI, else of Slurm's srun.
// Without any of them this is the only process of a world of one, as it is in an interactive shell of Slurm's. Missing,
// malformed or contradicting variables are a UserError that names them, and so are those of a launcher that does not
// tell how many ranks there are. `starts_ranks`: with --ranks, so that a batch script's own process is none of Slurm's.
Process process_from_environment(bool starts_ranks = false);

// `names`: the variables that the four numbers came from, for the message.
void check_place(const Process& process, const char* names);

}  // namespace conclave
