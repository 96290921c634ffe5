// What the ranks sum once a micro-step for the balancing losses and the load statistics, as doubles: by layer and
// expert the choices and the probabilities, by layer the squares of logsumexp and the highest probabilities, then a
// rank's own auxiliary loss and its tokens.
#pragma once

#include <cstdint>

namespace conclave {

inline int64_t balance_message_numbers(int64_t layers, int64_t experts) {
  return 2 * layers * experts + 2 * layers + 2;
}

}  // namespace conclave
