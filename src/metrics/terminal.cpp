#include "metrics/terminal.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>

namespace conclave {
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The locale's name ends in its encoding, in one of two spellings.
bool has_unicode_locale() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    std::string value = environment(name);
    if (value.empty()) continue;
    std::transform(value.begin(), value.end(), value.begin(), [](unsigned char c) { return std::tolower(c); });
    return value.ends_with("utf-8") || value.ends_with("utf8");
  }
  return false;
}

std::string styled(const char* how, const std::string& text, TerminalStyle style) {
  return style.has_color ? std::string("\x1b[") + how + text + "\x1b[0m" : text;
}

}  // namespace

bool is_terminal(std::FILE* out) {
  return ::isatty(::fileno(out)) == 1;
}

TerminalSize terminal_size(std::FILE* out) {
  constexpr int unknown = std::numeric_limits<int>::max();
  winsize size{};
  if (::ioctl(::fileno(out), TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return {unknown, unknown};
  return {size.ws_col, size.ws_row};
}

bool moves_its_cursor() {
  const std::string term = environment("TERM");
  return !term.empty() && term != "dumb";
}

TerminalStyle terminal_style() {
  return {.has_unicode = has_unicode_locale(), .has_color = environment("NO_COLOR").empty() && moves_its_cursor()};
}

std::string bold(const std::string& text, TerminalStyle style) {
  return styled("1m", text, style);
}

std::string dim(const std::string& text, TerminalStyle style) {
  return styled("2m", text, style);
}

std::string cut_to_columns(const std::string& text, size_t columns) {
  std::string cut;
  size_t used = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '\x1b') {  // to its last letter, which is one
      const size_t end = std::min(text.find('m', at), text.size() - 1);
      cut += text.substr(at, end - at + 1);
      at = end;
      continue;
    }
    const bool goes_on = (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;  // a byte within a UTF-8 letter
    if (!goes_on) ++used;
    if (used <= columns) cut += text[at];
  }
  return cut;
}

void rewrite_line(std::FILE* out, std::string line) {
  // A line that wraps could not be taken back by a carriage return. "\x1b[K" clears what a longer line before left.
  line.resize(std::min(line.size(), static_cast<size_t>(terminal_size(out).columns) - 1));
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
