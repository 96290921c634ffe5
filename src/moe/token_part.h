// Consecutive tokens of a rank.
#pragma once

#include <cstdint>

namespace conclave {

struct TokenPart {
  int64_t begin = 0;
  int64_t count = 0;
};

}  // namespace conclave
