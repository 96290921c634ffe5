// SIGTERM, SIGINT and SIGUSR1 as requests to end the run after the step in hand. A second one of them ends the process
// at once, with 128 + its number.
#pragma once

#include <csignal>

#include <array>

#include "base/error.h"

namespace conclave {

// Catches the signals while it lives; one in a process. Afterwards they do what they did before or, if one had come,
// nothing more: what a stopped run returns is decided by then.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;

  int received() const;  // by this process: the first signal's number; 0: none

 private:
  static constexpr std::array signals_ = {SIGTERM, SIGINT, SIGUSR1};
  std::array<struct sigaction, signals_.size()> before_{};
};

// Of a run that such a signal ended after a step.
ExitCode exit_code_of_stop(int signal);
// "SIGTERM"
const char* name_of_signal(int signal);

}  // namespace conclave
