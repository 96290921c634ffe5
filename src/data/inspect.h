// What `conclave data inspect` shows of a data set, as text for people.
#pragma once

#include <cstdint>
#include <string>

#include "data/bigram_model.h"
#include "data/indexed_tokens.h"

namespace conclave {

// Several lines: counts, token type, bytes, document lengths, samples an epoch at `sequence_length`, the highest token
// id, the unigram entropy of the set, its fingerprint and its first tokens. Scans the whole set once. UserError for a
// token id that is negative or outside the set's vocabulary.
std::string inspect_text(const IndexedTokens& set, int64_t sequence_length);

// Several lines: unigram and bigram cross-entropy and what they mean.
std::string ngram_text(const NgramCrossEntropy& result);

}  // namespace conclave
