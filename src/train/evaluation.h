// The loss on held-out text: the mean cross-entropy over all targets, whatever the layout.
#pragma once

#include <memory>

#include "data/sample_stream.h"
#include "train/forward_backward.h"
#include "train/parallel_job.h"

namespace conclave {

struct EvaluationResult {
  double lm_loss = 0;   // nats per token
  double aux_loss = 0;  // mean over micro-steps
  int64_t targets = 0;
};

// The validation set of a job, in its own order.
std::shared_ptr<const SampleStream> open_validation(const ParallelJob& job);

// The first `batches` micro-steps of the set, or all of it (0). Collective.
EvaluationResult evaluate(ParallelJob& job, ForwardBackward& forward_backward,
                          const std::shared_ptr<const SampleStream>& stream, int64_t batches);

}  // namespace conclave
