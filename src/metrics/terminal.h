// A line that is rewritten in place, for progress. An output that cannot be written (a log on a full disk) is not worth
// ending work for: no error is looked at.
#pragma once

#include <cstdio>
#include <string>

namespace conclave {

bool is_terminal(std::FILE* out);

// Shows `line`, cut to the terminal's width, in the place of what the line showed before.
void rewrite_line(std::FILE* out, std::string line);
void clear_line(std::FILE* out);

// "03:12:00", "1d 03:12:00".
std::string duration(double seconds);

}  // namespace conclave
