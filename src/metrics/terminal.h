// A line that is rewritten in place, for progress. An output that cannot be written (a log on a full disk) is not worth
// ending work for: no error is looked at.
#pragma once

#include <cstdio>
#include <string>

namespace conclave {

bool is_terminal(std::FILE* out);

struct TerminalSize {
  int columns;  // the most there can be where the size is not known
  int rows;
};
TerminalSize terminal_size(std::FILE* out);

// What the user's environment says of it: TERM, the locale, NO_COLOR (no-color.org).
bool moves_its_cursor();
struct TerminalStyle {
  bool has_unicode = false;
  bool has_color = false;
};
TerminalStyle terminal_style();
std::string bold(const std::string& text, TerminalStyle style);
std::string dim(const std::string& text, TerminalStyle style);

// The first letters of `text`, which may hold what bold() and dim() put into it.
std::string cut_to_columns(const std::string& text, size_t columns);

// Shows `line`, cut to the terminal's width, in the place of what the line showed before.
void rewrite_line(std::FILE* out, std::string line);
void clear_line(std::FILE* out);

// "03:12:00", "1d 03:12:00".
std::string duration(double seconds);

}  // namespace conclave
