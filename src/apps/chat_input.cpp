#include "apps/chat_input.h"

#include <unistd.h>

#include <cerrno>

namespace conclave {
namespace {

volatile std::sig_atomic_t was_interrupted = 0;

void note_interrupt(int) {
  was_interrupted = 1;
}

// Who is not in the foreground may only take it while SIGTTOU is blocked.
void take_foreground(pid_t group) {
  sigset_t blocked, before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTTOU);
  sigprocmask(SIG_BLOCK, &blocked, &before);
  (void)::tcsetpgrp(STDIN_FILENO, group);
  sigprocmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace

ChatInput::ChatInput() : is_terminal_(::isatty(STDIN_FILENO) == 1) {
  if (is_terminal_ && ::tcgetpgrp(STDIN_FILENO) != ::getpgrp()) {
    foreground_before_ = ::tcgetpgrp(STDIN_FILENO);
    take_foreground(::getpgrp());
  }
  struct sigaction action {};
  action.sa_handler = note_interrupt;  // without SA_RESTART: it ends a read
  sigaction(SIGINT, &action, &before_);
}

ChatInput::~ChatInput() {
  sigaction(SIGINT, &before_, nullptr);
  if (foreground_before_ > 0) take_foreground(foreground_before_);
}

std::optional<std::string> ChatInput::read_line() {
  std::string line;
  for (char letter = 0;;) {
    const ssize_t count = ::read(STDIN_FILENO, &letter, 1);
    if (count < 0 && errno == EINTR && was_interrupted == 0) continue;
    if (count <= 0) return count == 0 && !line.empty() ? std::optional(line) : std::nullopt;
    if (letter == '\n') return line;
    line += letter;
  }
}

bool ChatInput::take_interrupt() {
  const bool interrupted = was_interrupted != 0;
  was_interrupted = 0;
  return interrupted;
}

}  // namespace conclave
