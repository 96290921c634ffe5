// A short name for the content of a data set, kept in checkpoints to notice on resume that the data changed.
#pragma once

#include <string>

#include "data/indexed_tokens.h"

namespace conclave {

// 16 hexadecimal digits: XXH3 (64 bits) over the whole .idx, the length of the .bin and 64 blocks of 64 KiB spread
// evenly over it, the first and the last among them; all of it where it is no longer than that. A change elsewhere in a
// larger .bin that leaves the .idx alone goes unseen.
std::string fingerprint(const IndexedTokens& set);

}  // namespace conclave
