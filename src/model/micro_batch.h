// The tokens one rank computes with at once.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace conclave {

struct MicroBatch {
  at::Tensor token_T;                // int64 [B * S], sequences one after the other
  at::Tensor target_T;               // int64 [B * S]; -100 is ignored
  int64_t batch = 0;                 // B; may be 0: a rank without a sequence still takes part in every collective
  int64_t sequence = 0;              // S
  std::vector<int64_t> sample_of_B;  // global sample index of each sequence: names its random draws whatever the layout

  int64_t tokens() const { return batch * sequence; }
};

}  // namespace conclave
