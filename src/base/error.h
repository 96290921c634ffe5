// The three kinds of failure, and the exit code of each. Everything thrown on purpose is one of them.
#pragma once

#include <fmt/core.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace conclave {

enum ExitCode : int {
  exit_success = 0,
  exit_failure = 1,     // our own bug, or a failure of the machine (disk full, out of memory)
  exit_user_error = 2,  // a mistake in the job file, the command line or an input file: nothing was started
  exit_peer_lost = 3,   // another rank died or hangs; the message names it
  // A run ended after a step before its last, and its state is saved (unless the job says to save nothing):
  exit_terminated = 4,   // by SIGTERM or SIGHUP
  exit_interrupted = 5,  // by SIGINT
  exit_requeue = 6,      // by its deadline (run.stop_after) or SIGUSR1: start the job again
};

// A mistake the user can mend: says what is wrong, its value, the reason and the remedy.
class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Another rank died or did not answer within the time-out.
class PeerLostError : public std::runtime_error {
 public:
  // `lost`: the ranks that are gone or hang, so that none of them can tell the user.
  explicit PeerLostError(const std::string& text, std::vector<int> lost = {})
      : std::runtime_error(text), lost_(std::move(lost)) {}

  // The lowest rank that is not lost: the one that tells the user, for all.
  int speaker() const {
    int rank = 0;
    while (std::find(lost_.begin(), lost_.end(), rank) != lost_.end()) ++rank;
    return rank;
  }

 private:
  std::vector<int> lost_;
};

// Our own bug: an invariant and the values that break it.
class InvariantError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

template <class... Args>
[[noreturn]] void user_error(fmt::format_string<Args...> format, Args&&... args) {
  throw UserError(fmt::format(format, std::forward<Args>(args)...));
}

// check_invariant(received == announced, "rows received ({}) != rows announced ({})", received, announced);
template <class... Args>
void check_invariant(bool holds, fmt::format_string<Args...> format, Args&&... args) {
  if (!holds) [[unlikely]]
    throw InvariantError("invariant broken: " + fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace conclave
