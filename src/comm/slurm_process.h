// A rank that Slurm's srun has started.
#pragma once

#include <optional>
#include <string>

#include "comm/process.h"

namespace conclave {

// Nothing where srun did not start this process as a rank: also in a shell that it started (salloc, srun --pty), and in
// a batch script, unless that was given several tasks and does not start ranks itself: then it is a UserError.
std::optional<Process> process_from_slurm(bool starts_ranks);

// What Slurm's compact notation says: the first host of "gpu[03-05,9],cpu1" ("gpu03"), the task count of node 2 of
// "4(x2),3" (3). A malformed text is a UserError that names `variable`.
std::string first_slurm_host(const std::string& list, const char* variable);
int slurm_tasks_of_node(const std::string& tasks_per_node, int node, const char* variable);

}  // namespace conclave
