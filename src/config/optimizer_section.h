// The section `optimizer` of the job file. AdamW.
#pragma once

#include <cstdint>

namespace conclave {

class Fields;

struct OptimizerConfig {
  double lr = 1e-4;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.2;
  double grad_clip = 1.0;  // 0: none
  int64_t max_skipped_steps =
      5;  // steps with a non-finite loss or gradient are skipped; the job stops after this many in a row
};

void describe(OptimizerConfig& optimizer, Fields& to);

}  // namespace conclave
