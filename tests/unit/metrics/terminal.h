// A pseudo terminal for tests: what a program writes to it, whole.
#pragma once

#include <gtest/gtest.h>
#include <pty.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <functional>
#include <string>

namespace conclave {

// `write` prints to a terminal of so many columns. A terminal hands over what was printed in pieces, so all is read
// that comes before the end.
inline std::string printed_on_terminal(unsigned short columns, const std::function<void(std::FILE*)>& write) {
  int terminal = -1, program = -1;
  winsize size{.ws_row = 24, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
  EXPECT_EQ(::openpty(&terminal, &program, nullptr, nullptr, &size), 0);
  std::FILE* out = ::fdopen(program, "w");
  write(out);
  std::fclose(out);
  std::string printed;
  std::array<char, 4096> buffer{};
  for (ssize_t count; (count = ::read(terminal, buffer.data(), buffer.size())) > 0;)
    printed.append(buffer.data(), static_cast<size_t>(count));
  ::close(terminal);
  return printed;
}

}  // namespace conclave
