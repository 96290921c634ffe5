#include "data/permutation.h"

#include <array>
#include <bit>

#include "base/error.h"
#include "base/random.h"

namespace conclave {
namespace {

// Four rounds suffice for large domains; the small ones of short data sets need more to look uniform.
constexpr uint64_t rounds = 8;

}  // namespace

uint64_t permuted(uint64_t index, uint64_t n, uint64_t seed, uint64_t epoch) {
  check_invariant(index < n, "index {} of a permutation of {}", index, n);
  static const uint64_t key_stream = random_stream("data order");
  std::array<uint64_t, rounds> keys;
  for (uint64_t round = 0; round < rounds; ++round) keys[round] = random_u64(seed, key_stream, epoch * rounds + round);

  const int half_bits = n == 1 ? 0 : (std::bit_width(n - 1) + 1) / 2;
  const uint64_t half_mask = (uint64_t{1} << half_bits) - 1;
  uint64_t value = index;
  do {
    uint64_t left = value >> half_bits;
    uint64_t right = value & half_mask;
    for (const uint64_t key : keys) {
      const uint64_t mixed = left ^ (random_u64(key, key_stream, right) & half_mask);
      left = right;
      right = mixed;
    }
    value = (left << half_bits) | right;
  } while (value >= n);
  return value;
}

}  // namespace conclave
