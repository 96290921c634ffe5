// The section `metrics` of the job file. What is reported.
#pragma once

#include <cstdint>

namespace conclave {

class Fields;

struct MetricsConfig {
  bool tensorboard = true;
  int64_t log_every = 1;        // steps between progress lines; metrics.jsonl has every step
  bool record_routing = false;  // rows of each step, layer, rank and expert (moe/routing_record.h)
};

void describe(MetricsConfig& metrics, Fields& to);

}  // namespace conclave
