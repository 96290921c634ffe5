// The lines that a user types or a pipe brings, and Ctrl-C, which ends an answer while one is written and else the
// chat.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <optional>
#include <string>

namespace conclave {

// One in a process, of the rank that speaks with the user. While it lives, that rank is in the foreground of its
// terminal: a rank that was started on this machine is no job of the shell's, and could not read otherwise.
class ChatInput {
 public:
  ChatInput();
  ~ChatInput();
  ChatInput(const ChatInput&) = delete;

  bool is_terminal() const { return is_terminal_; }
  // Without its line feed; nothing at the end of the input, or after Ctrl-C.
  std::optional<std::string> read_line();
  // Whether Ctrl-C was pressed since the last call.
  bool take_interrupt();

 private:
  bool is_terminal_;
  pid_t foreground_before_ = -1;  // -1: it was this process's group already
  struct sigaction before_ {};
};

}  // namespace conclave
