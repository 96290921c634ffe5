// A routed row on its way to the rank of its expert: H elements, one fp32 routing weight behind them, padded with zeros
// to a multiple of 16 bytes.
#pragma once

#include <cstdint>

namespace conclave {

inline int64_t row_message_bytes(int64_t hidden, int64_t element_bytes) {
  constexpr int64_t weight_bytes = 4, alignment = 16;
  return (hidden * element_bytes + weight_bytes + alignment - 1) / alignment * alignment;
}

}  // namespace conclave
