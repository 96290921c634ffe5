// A rank that an MPI's launcher has started. MPI itself is not used: the launcher's variables say which rank this is.
#pragma once

#include <optional>
#include <string>

#include "comm/process.h"

namespace conclave {

// Reads the variables of Open MPI, MVAPICH, and Hydra's (MPICH, Intel MPI). Nothing without them.
std::optional<Process> process_from_mpi();

// A UserError if a launcher that is known not to tell how many ranks there are started this process.
void refuse_unsized_launcher();

// "FOO_RANK=1": a variable that looks as if a launcher that Conclave does not know had started this process, which
// takes itself for a world of one. Empty without one.
std::string sign_of_unknown_launcher();

}  // namespace conclave
