// The tokens one rank computes with at once.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/documents.h"

namespace conclave {

struct MicroBatch {
  at::Tensor token_T;                // int64 [B * S], sequences one after the other
  at::Tensor target_T;               // int64 [B * S]; -100 is ignored
  int64_t batch = 0;                 // B; may be 0: a rank without a sequence still takes part in every collective
  int64_t sequence = 0;              // S
  std::vector<int64_t> sample_of_B;  // global sample index of each sequence: names its random draws whatever the layout
  std::vector<int64_t> source_of_B;  // source of each sequence, if there are several: its loss is told apart
  // That do not see each other, of all rows; null: each sequence is one.
  std::shared_ptr<const Documents> documents = {};

  bool trains = false;  // adapters' dropout draws

  int64_t tokens() const { return batch * sequence; }
  // Rows at which the parts end whose losses are summed apart: each sequence, or all of them.
  std::vector<int64_t> part_ends() const {
    if (source_of_B.empty()) return {tokens()};
    std::vector<int64_t> ends;
    for (int64_t b = 1; b <= batch; ++b) ends.push_back(b * sequence);
    return ends;
  }
};

}  // namespace conclave
