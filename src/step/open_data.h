// The data that a job names, opened.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "config/job.h"
#include "data/blend.h"

namespace conclave {

// The training data in the order of training. UserError for files that cannot be used, and for weights that are none.
std::shared_ptr<const Blend> open_training(const Job& job, int64_t vocab_size);

struct NamedSet {
  std::string name;
  std::shared_ptr<const SampleStream> stream;
};
// The validation sets, each in its own order; none without data.validation. UserError also for a set whose first
// validation.samples samples have no target to score.
std::vector<NamedSet> open_validation(const Job& job, int64_t vocab_size);

}  // namespace conclave
