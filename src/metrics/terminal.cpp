#include "metrics/terminal.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace conclave {
namespace {

size_t columns(std::FILE* out) {
  winsize size{};
  if (::ioctl(::fileno(out), TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return std::numeric_limits<size_t>::max();
  return size.ws_col;
}

}  // namespace

bool is_terminal(std::FILE* out) {
  return ::isatty(::fileno(out)) == 1;
}

void rewrite_line(std::FILE* out, std::string line) {
  // A line that wraps could not be taken back by a carriage return. "\x1b[K" clears what a longer line before left.
  line.resize(std::min(line.size(), columns(out) - 1));
  std::fputs(("\r" + line + "\x1b[K").c_str(), out);
  std::fflush(out);
}

void clear_line(std::FILE* out) {
  std::fputs("\r\x1b[K", out);
  std::fflush(out);
}

std::string duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::lround(std::max(seconds, 0.0)));
  const int64_t days = whole / 86400;
  const std::string clock = fmt::format("{:02}:{:02}:{:02}", whole / 3600 % 24, whole / 60 % 60, whole % 60);
  return days > 0 ? fmt::format("{}d {}", days, clock) : clock;
}

}  // namespace conclave
