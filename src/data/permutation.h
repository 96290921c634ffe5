// A keyed permutation of [0, n): the order of the samples in an epoch, computed for any one place alone, without a
// table. So the state of a shuffled reader is one integer, and the order depends on nothing but (n, seed, epoch).
//
// A balanced Feistel network over the smallest 2^(2w) >= n (Luby and Rackoff, "How to Construct Pseudorandom
// Permutations from Pseudorandom Functions", 1988) with Philox as its round function; a value that falls outside [0, n)
// is sent through again until it falls inside ("cycle walking": Black and Rogaway, "Ciphers with Arbitrary Finite
// Domains", CT-RSA 2002). 2^(2w) < 4n, so that takes less than 4 passes on average.
#pragma once

#include <cstdint>

namespace conclave {

// The image of `index` in [0, n). Each (seed, epoch) is a permutation of its own. n >= 1. About a microsecond.
uint64_t permuted(uint64_t index, uint64_t n, uint64_t seed, uint64_t epoch);

}  // namespace conclave
