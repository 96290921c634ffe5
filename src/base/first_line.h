// The first line of a text: what transports and PyTorch say goes on for many lines of stack.
#pragma once

#include <string>

namespace conclave {

inline std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

}  // namespace conclave
