#include "train/stop_signals.h"

#include <unistd.h>

namespace conclave {
namespace {

volatile sig_atomic_t first_signal = 0;

void receive(int signal) {
  if (first_signal != 0) _exit(128 + signal);
  first_signal = signal;
}

}  // namespace

StopSignals::StopSignals() {
  first_signal = 0;
  struct sigaction action {};
  action.sa_handler = receive;
  action.sa_flags = SA_RESTART;  // no call of a library sees an interruption
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < signals_.size(); ++i) sigaction(signals_[i], &action, &before_[i]);
}

StopSignals::~StopSignals() {
  for (size_t i = 0; i < signals_.size(); ++i) {
    if (first_signal != 0) before_[i].sa_handler = SIG_IGN;
    sigaction(signals_[i], &before_[i], nullptr);
  }
}

int StopSignals::received() const {
  return first_signal;
}

ExitCode exit_code_of_stop(int signal) {
  switch (signal) {
    case SIGINT:
      return exit_interrupted;
    case SIGUSR1:
      return exit_requeue;
    default:
      return exit_terminated;
  }
}

const char* name_of_signal(int signal) {
  switch (signal) {
    case SIGINT:
      return "SIGINT";
    case SIGUSR1:
      return "SIGUSR1";
    default:
      return "SIGTERM";
  }
}

}  // namespace conclave
