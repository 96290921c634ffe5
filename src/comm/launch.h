// Starts the ranks of a job on this machine by torchrun, and says how they ended.
#pragma once

#include <string>
#include <vector>

namespace conclave {

struct LaunchOptions {
  int ranks = 1;
  std::vector<std::string>
      command;         // the program (an absolute path) and its arguments, which must not ask to launch again
  std::string python;  // that has torch; empty: the one of the build, else python3 of the PATH
};

// Runs `command` in `ranks` processes under torchrun, each with its share of the cores, and waits. Returns 0 if all
// returned 0, else the exit code of the first rank that failed; exit_peer_lost if a signal ended that one, which is
// said on standard error; 128 + signal if SIGINT or SIGTERM, which are passed on to the ranks, ended the job. A Python
// that cannot be used is a UserError.
int launch_local_ranks(const LaunchOptions& options);

}  // namespace conclave
