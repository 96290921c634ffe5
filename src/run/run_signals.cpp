#include "run/run_signals.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

namespace conclave {
namespace {

volatile sig_atomic_t ending_signal = 0;
volatile sig_atomic_t save_requests = 0;
volatile sig_atomic_t has_voice = 0;

// Two, so that the handler never reads the one that is written.
char saved_texts[2][256];
std::atomic<const char*> saved_text = saved_texts[0];

void set_saved_text(const std::string& text) {
  char* next = saved_text.load() == saved_texts[0] ? saved_texts[1] : saved_texts[0];
  std::strncpy(next, text.c_str(), sizeof saved_texts[0] - 1);
  saved_text = next;
}

// Nothing else may be called in a handler. Whether anybody reads it does not matter.
void say(std::string_view text) {
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text.data(), text.size());
}

void say(int signal, const char* what) {
  if (has_voice == 0) return;
  say("\n");
  say(name_of_signal(signal));
  say(what);
}

void receive(int signal) {
  const int error = errno;
  if (signal == SIGUSR2) {
    save_requests = save_requests + 1;
  } else if (signal == SIGINT && ending_signal == SIGINT) {
    say(signal, " came twice: the run ends at once. ");
    if (has_voice != 0) say(saved_text.load());
    _exit(128 + signal);
  } else if (ending_signal == 0) {
    ending_signal = signal;
    say(signal, signal == SIGINT ? ": the run ends after the step in hand. Press Ctrl-C again to end it at once.\n"
                                 : ": the run ends after the step in hand.\n");
  } else if (signal != SIGHUP) {  // the run ends already; of two different signals the newer one counts
    ending_signal = signal;
  }
  errno = error;
}

}  // namespace

RunSignals::RunSignals(Voice voice) {
  ending_signal = 0;
  save_requests = 0;
  has_voice = voice == Voice::speaks ? 1 : 0;
  set_saved_text("Nothing of it is saved.\n");
  struct sigaction action {};
  action.sa_handler = receive;
  action.sa_flags = SA_RESTART;  // no call of a library sees an interruption
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < caught_.size(); ++i) {
    sigaction(caught_[i], &action, &before_[i]);
    if (caught_[i] == SIGHUP && before_[i].sa_handler == SIG_IGN) sigaction(SIGHUP, &before_[i], nullptr);
  }
}

RunSignals::~RunSignals() {
  for (size_t i = 0; i < caught_.size(); ++i) {
    if (ending_signal != 0) before_[i].sa_handler = SIG_IGN;
    sigaction(caught_[i], &before_[i], nullptr);
  }
}

int RunSignals::to_end() const {
  return ending_signal;
}

bool RunSignals::take_save_request() {
  const int asked_for = save_requests;
  return std::exchange(saves_asked_for_, asked_for) != asked_for;
}

void RunSignals::tell_of_saved(int64_t step) {
  set_saved_text(fmt::format("What came after step {} is not saved; the same command goes on from there.\n", step));
}

void answer_signals_while_starting() {
  struct sigaction action {};
  sigemptyset(&action.sa_mask);
  action.sa_handler = SIG_IGN;
  sigaction(SIGUSR2, &action, nullptr);
  action.sa_handler = [](int) { _exit(exit_requeue); };
  sigaction(SIGUSR1, &action, nullptr);
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
    case SIGHUP:
      return "SIGHUP";
    default:
      return "SIGTERM";
  }
}

}  // namespace conclave
