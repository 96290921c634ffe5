// Where in its data a run goes on. The position is the number of the next sample, so that the batch size and the number
// of ranks may change with no sample skipped or repeated. What the number of a sample means depends on the data, the
// sequence length and the seed; when one of them changes, the position is carried over as exactly as can be.
#pragma once

#include <string>

#include "checkpoint/checkpoint_state.h"
#include "data/blend.h"

namespace conclave {

struct DataPosition {
  int64_t sample = 0;  // of `blend`
  std::string said;    // what is not exact about it; empty: all is
};

// With other data: the beginning of it. With another sequence length: as many epochs and, within the last, as many
// tokens, rounded up to whole samples; of several sources, whose epochs end at different times, as many tokens.
// `fingerprint`: of the blend's data.
DataPosition position_in_data(const CheckpointState& state, const Blend& blend, const std::string& fingerprint,
                              uint64_t seed);

// Logs what a run of so many further steps from sample `first` on reads: each source, its share, how many times over,
// what of it is trained on and what is never read.
void log_reading(const Blend& blend, int64_t first, int64_t steps, int64_t sequences_per_step);

}  // namespace conclave
