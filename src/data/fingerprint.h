// A short name for the content of a data set, kept in checkpoints to notice on resume that the data changed.
#pragma once

#include <string>

#include "data/blend.h"

namespace conclave {

// 16 hexadecimal digits: XXH3 (64 bits) over the whole .idx, the length of the .bin and its spread blocks
// (spread_blocks.h), and those of the mask if there is one. A change elsewhere in a larger .bin that leaves the .idx
// alone goes unseen.
std::string fingerprint(const IndexedTokens& set);

// Of several sources: over their fingerprints and shares, in their order.
std::string fingerprint(const Blend& blend);

}  // namespace conclave
