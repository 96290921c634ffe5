// The type of the tokens in a .bin.
#pragma once

#include <cstdint>

#include "base/error.h"

namespace conclave {

// The codes of the format. Its floating-point types (6, 7) are refused: they hold no token ids.
enum class TokenType : uint8_t { u8 = 1, i8 = 2, i16 = 3, i32 = 4, i64 = 5, u16 = 8 };

// Calls `body` with a value of the C++ type of the tokens.
template <class Body>
auto with_token_type(TokenType type, Body&& body) {
  switch (type) {
    case TokenType::u8:
      return body(uint8_t{});
    case TokenType::i8:
      return body(int8_t{});
    case TokenType::i16:
      return body(int16_t{});
    case TokenType::i32:
      return body(int32_t{});
    case TokenType::i64:
      return body(int64_t{});
    case TokenType::u16:
      return body(uint16_t{});
  }
  check_invariant(false, "token type {}", static_cast<int>(type));
  return body(uint8_t{});
}

inline const char* name_of(TokenType type) {
  switch (type) {
    case TokenType::u8:
      return "u8";
    case TokenType::i8:
      return "i8";
    case TokenType::i16:
      return "i16";
    case TokenType::i32:
      return "i32";
    case TokenType::i64:
      return "i64";
    case TokenType::u16:
      return "u16";
  }
  return "?";
}

inline int64_t bytes_of(TokenType type) {
  return with_token_type(type, [](auto token) { return static_cast<int64_t>(sizeof(token)); });
}

}  // namespace conclave
