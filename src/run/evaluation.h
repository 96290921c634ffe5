// The loss on held-out text: the mean cross-entropy over all targets of the same samples, whatever the layout.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "metrics/record.h"
#include "step/forward_backward.h"
#include "step/open_data.h"
#include "step/parallel_job.h"

namespace conclave {

struct EvaluationResult {
  double lm_loss = 0;          // nats per token
  double aux_loss = 0;         // mean over micro-steps, each weighed by its tokens
  int64_t targets = 0;         // that it is the mean over
  int64_t samples = 0;         // that it is of: the first of the set
  int64_t samples_of_set = 0;  // that there are
};

// "the first 32 of 120 samples of data/text-validation (8192 tokens)", or "all 120 samples ...".
std::string samples_in_words(const EvaluationResult& result, const SampleStream& stream);

// Over the first `samples` samples of the set, or all of it (0, or more than there are). Collective.
EvaluationResult evaluate(ParallelJob& job, ForwardBackward& forward_backward,
                          const std::shared_ptr<const SampleStream>& stream, int64_t samples);

// Of all sets of a job, in their order. Collective; rank 0 says each result, of step `step`.
std::vector<EvaluationResult> validate(ParallelJob& job, ForwardBackward& forward_backward,
                                       const std::vector<NamedSet>& sets, int64_t step);

// The mean over the targets of all sets, and if they have names, each under its own.
void append_validation(MetricsRecord& record, const std::vector<NamedSet>& sets,
                       const std::vector<EvaluationResult>& results, bool named);

}  // namespace conclave
