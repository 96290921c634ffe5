// Text from outside the process, such as another rank's words, made fit for a terminal and a log.
#pragma once

#include <string>
#include <string_view>

namespace conclave {

enum class LineFeeds { escaped, kept };

// Control characters and bytes that are no UTF-8 as \n, \t or \x1b: such text cannot change the terminal's title, move
// its cursor, or pretend to be a line of its own.
std::string printable(std::string_view text, LineFeeds line_feeds = LineFeeds::escaped);

}  // namespace conclave
