#include "base/printable.h"

#include <fmt/core.h>

#include <cstdint>

namespace conclave {
namespace {

// Bytes of the character that begins the text; 0 if they are no UTF-8. Overlong forms, surrogates and what lies beyond
// U+10FFFF are none.
size_t length_of_character(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xc2 && first <= 0xdf   ? 2
                        : first >= 0xe0 && first <= 0xef ? 3
                        : first >= 0xf0 && first <= 0xf4 ? 4
                                                         : 0;
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  const uint8_t second = byte(1);
  const bool is_bad = (first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) ||
                      (first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f);
  return is_bad ? 0 : length;
}

// U+0000 to U+001F, U+007F to U+009F, and the marks that change the direction of writing.
bool is_control(std::string_view character) {
  const auto first = static_cast<uint8_t>(character[0]);
  if (character.size() == 1) return first < 0x20 || first == 0x7f;
  const auto second = static_cast<uint8_t>(character[1]);
  if (character.size() == 2) return first == 0xc2 && second < 0xa0;
  if (character.size() != 3 || first != 0xe2) return false;
  const auto third = static_cast<uint8_t>(character[2]);
  return (second == 0x80 && ((third >= 0x8e && third <= 0x8f) || (third >= 0xa8 && third <= 0xae))) ||
         (second == 0x81 && third >= 0xa6 && third <= 0xa9);
}

}  // namespace

std::string printable(std::string_view text, LineFeeds line_feeds) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const size_t length = length_of_character(text);
    const std::string_view character = text.substr(0, length == 0 ? 1 : length);
    text.remove_prefix(character.size());
    if (length != 0 && (!is_control(character) || (character == "\n" && line_feeds == LineFeeds::kept))) {
      result += character;
    } else if (character == "\n") {
      result += "\\n";
    } else if (character == "\t") {
      result += line_feeds == LineFeeds::kept ? "\t" : "\\t";
    } else {
      for (const char byte : character) result += fmt::format("\\x{:02x}", static_cast<uint8_t>(byte));
    }
  }
  return result;
}

}  // namespace conclave
