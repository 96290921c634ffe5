// The parts of a large file by which it is known again: 64 blocks of 64 KiB spread evenly over it, the first and the
// last among them; all of it where it is no longer than that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace conclave {

template <class Add>
void for_spread_blocks(std::span<const std::byte> bytes, Add add) {
  constexpr uint64_t blocks = 64;
  constexpr uint64_t block_bytes = 64 * 1024;
  if (bytes.size() <= blocks * block_bytes) {
    add(bytes);
    return;
  }
  const uint64_t last_begin = bytes.size() - block_bytes;
  for (uint64_t b = 0; b < blocks; ++b) {
    // Whole steps, so that the product cannot overflow; the last block ends the file.
    const uint64_t begin = b + 1 == blocks ? last_begin : last_begin / (blocks - 1) * b;
    add(bytes.subspan(begin, block_bytes));
  }
}

}  // namespace conclave
