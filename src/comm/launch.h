// Starts the ranks of a job on this machine by torchrun, and says how they ended.
#pragma once

#include <string>
#include <vector>

namespace conclave {

struct LaunchOptions {
  int ranks = 1;
  std::vector<std::string>
      command;         // the program (an absolute path) and its arguments, which must not ask to launch again
  std::string python;  // empty: default_python()
};

// A Python that has torch: the one of the build, else python3 of the PATH.
std::string default_python();

// Runs `command` in `ranks` processes under torchrun, each with its share of the cores, and waits. SIGINT, SIGTERM and
// SIGUSR1 are passed on to the ranks, and it is theirs to end. Returns 0 if all returned 0, else the exit code of the
// first rank that failed; 128 + signal if a signal that was passed on ended that one, exit_peer_lost if another one
// did, which is said on standard error. A Python that cannot be used is a UserError.
int launch_local_ranks(const LaunchOptions& options);

}  // namespace conclave
