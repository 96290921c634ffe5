// The signals that a run answers after the step in hand. SIGTERM, SIGHUP, SIGINT and SIGUSR1 end it. A second SIGINT,
// of somebody who waits at the keyboard, ends the process at once, with 128 + its number, and says what is saved. The
// others are one request however often they come: a terminal that closes sends several SIGHUP, Slurm sends SIGTERM
// again at the end of a grace time. Where SIGHUP is ignored (nohup) it stays ignored. SIGUSR2 asks for a checkpoint.
#pragma once

#include <csignal>

#include <array>
#include <cstdint>

#include "base/error.h"

namespace conclave {

// Catches the signals while it lives; one in a process. Afterwards they do what they did before or, if one had come
// that ends the run, nothing more: what a stopped run returns is decided by then.
class RunSignals {
 public:
  enum class Voice { silent, speaks };
  // `speaks`: this rank writes a line to standard error when a signal to end arrives.
  explicit RunSignals(Voice voice);
  ~RunSignals();
  RunSignals(const RunSignals&) = delete;

  int to_end() const;  // the number of the signal that this process received; 0: none
  // Whether a checkpoint was asked for since the last call.
  bool take_save_request();

  // The newest step that is saved, for the line that is written at an end at once.
  void tell_of_saved(int64_t step);

 private:
  static constexpr std::array caught_ = {SIGTERM, SIGINT, SIGUSR1, SIGHUP, SIGUSR2};
  std::array<struct sigaction, caught_.size()> before_{};
  int saves_asked_for_ = 0;  // that were taken
};

// For the time before: a process that still starts has nothing to save. It does not heed SIGUSR2, and SIGUSR1 ends it
// at once with the code by which a scheduler starts the run again. The other signals do what they do anywhere.
void answer_signals_while_starting();

// Of a run that such a signal ended after a step.
ExitCode exit_code_of_stop(int signal);
// "SIGTERM"
const char* name_of_signal(int signal);

}  // namespace conclave
