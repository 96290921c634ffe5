// How long the documents of a run's samples are.
#pragma once

#include <cstdint>

#include "data/blend.h"

namespace conclave {

// Tokens of the document of a token, on average over the tokens of the first 1,024 samples and rounded: documents of
// this one length would take as much attention as those of the data. S where documents are joined.
int64_t document_length_of_tokens(const Blend& blend);

}  // namespace conclave
