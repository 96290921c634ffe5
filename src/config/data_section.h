// The section `data` of the job file. Token files and batch sizes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "config/data_sets.h"

namespace conclave {

class Fields;
class KeyRules;

struct DataConfig {
  TrainingData train;                        // required for training
  std::optional<ValidationData> validation;  // null: none
  int64_t sequence_length = 2048;            // tokens of one sample
  int64_t micro_batch_size = 1;              // sequences per rank and micro-step
  std::optional<int64_t>
      global_batch_size;       // sequences per step over all ranks; default: micro_batch_size x world size
  bool document_mask = false;  // documents of a sample do not see each other
};

// Of a global batch that so many ranks cannot take in whole micro-steps, with the nearest that they can; empty: they
// can. `place`: where it was given.
std::string mistake_in_batch_size(const DataConfig& data, int world_size, const std::string& place);

void describe(DataConfig& data, Fields& to);
void check(const DataConfig& data, KeyRules& rules);

}  // namespace conclave
