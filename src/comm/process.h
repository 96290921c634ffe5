// This process's place among the ranks of the job, as its launcher tells it by environment variables.
#pragma once

#include <string>

namespace conclave {

enum class Launcher { none, torchrun, slurm, open_mpi };

struct Process {
  int rank = 0;              // in the job
  int world_size = 1;        // ranks of the job
  int local_rank = 0;        // among the ranks of this host; also the index of its GPU
  int local_world_size = 1;  // ranks of this host
  Launcher launcher = Launcher::none;
  std::string master_address;          // where the store is served; empty for a world of one
  int master_port = 0;                 // 0 for a world of one
  bool launcher_serves_store = false;  // torchrun's agent serves it; else rank 0 does
  int restart_count = 0;               // torchrun's: each restart is a new job in the same store
  int cpus_per_rank = 0;               // as granted by the launcher; 0: not said
  int store_socket = -1;               // rank 0 only: a socket that already listens on master_port, or -1

  bool is_single() const { return world_size == 1; }
  bool is_one_host() const { return local_world_size == world_size; }
};

// Reads the variables of torchrun (RANK, WORLD_SIZE, ...), else of Slurm's srun (SLURM_PROCID, ...), else of Open MPI's
// mpirun (OMPI_COMM_WORLD_RANK, ...). Without any of them this is the only process of a world of one. Missing,
// malformed or contradicting variables are a UserError that names them.
Process process_from_environment();

// Gives this rank its share of the host's cores for ATen's parallel loops: granted cores, or the cores it may run on
// divided by the host's ranks.
void set_threads(const Process& process);

// What Slurm's compact notation says: the first host of "gpu[03-05,9],cpu1" ("gpu03"), the task count of node 2 of
// "4(x2),3" (3). A malformed text is a UserError that names `variable`.
std::string first_slurm_host(const std::string& list, const char* variable);
int slurm_tasks_of_node(const std::string& tasks_per_node, int node, const char* variable);

}  // namespace conclave
