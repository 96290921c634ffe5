// Starts the ranks of a job on this machine, and says how they ended.
#pragma once

#include <string>
#include <vector>

namespace conclave {

struct LaunchOptions {
  int ranks = 1;
  // The program (an absolute path) and its arguments, which must not ask to launch again.
  std::vector<std::string> command;
};

// Runs `command` in `ranks` processes, which meet under a name of their own (Process::meeting), and waits for all.
// SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are passed on to the ranks, and it is theirs to end; Ctrl-Z stops them
// too. Once one has failed, those that do not end by themselves are ended; so are all if this process is killed.
// Returns 0 if all returned 0, else the exit code of the first rank that failed, where one that failed for a reason of
// its own counts before one that lost another; 128 + signal if a signal that was passed on ended it, exit_peer_lost if
// another one did, which is said on standard error.
int launch_local_ranks(const LaunchOptions& options);

}  // namespace conclave
