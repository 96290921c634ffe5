// Writes a run's routing.bin (moe/routing_record.h): like metrics.jsonl it has each step once, also across stop, resume
// and going back.
#pragma once

#include <memory>
#include <string>

#include "metrics/append_file.h"
#include "step/train_step.h"

namespace conclave {

class RoutingRecorder {
 public:
  // On rank 0, cuts what the folder's file has of steps after `resumed_step`, also when this run records nothing. What
  // is no record of this model's routing is put aside.
  RoutingRecorder(ParallelJob& job, int64_t resumed_step);

  // Nothing without metrics.record_routing. Collective.
  void record(int64_t step, const StepReport& report);

 private:
  ParallelJob& job_;
  std::unique_ptr<AppendFile> file_;  // rank 0's
  std::string head_;                  // not written yet
};

}  // namespace conclave
