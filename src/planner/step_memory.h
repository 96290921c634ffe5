// The memory of one rank's step, predicted: every tensor of the engine that grows with the model, the batch or the
// layout, held and freed in the engine's order (train/forward_backward.cpp, model/mixtral_layer.cpp and what they
// call).
#pragma once

#include <string>

#include "base/memory_use.h"
#include "planner/planned_rank.h"

namespace conclave {

// What ATen allocates for cuBLAS on a GPU of compute capability 9 and keeps, for each of the two streams that multiply
// (cuda/two_streams.h): part of every plan for CUDA.
inline constexpr int64_t cublas_workspace_bytes = 2 * (int64_t{32} << 20);

struct PlannedMemory {
  MemoryUse peak_of;      // each category's own highest; total is the highest total
  MemoryUse at_peak;      // the categories at the moment of the highest total
  std::string moment;     // "backward of layers.3, experts"
  int64_t offloaded = 0;  // bytes of layer inputs away from the device, at most
};

// Of a run in its steady state.
PlannedMemory step_memory(const PlannedRank& rank);

// Of a validation between two steps.
PlannedMemory evaluation_memory(const PlannedRank& rank);

}  // namespace conclave
