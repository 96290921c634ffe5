// A parameter of which each rank holds a part, whole on every rank.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "step/parallel_job.h"

namespace conclave {

// Each rank puts its part into zeros [numel], fp32, and the sum is the whole. On the CPU. Collective.
at::Tensor whole_of_parts(ParallelJob& job, int64_t numel, const std::function<void(at::Tensor&)>& put);

// `slices`: this rank's, of this parameter and others, each element on one rank alone.
at::Tensor whole_parameter(ParallelJob& job, const std::vector<TensorSlice>& slices, const std::string& name,
                           const std::vector<int64_t>& shape);

}  // namespace conclave
