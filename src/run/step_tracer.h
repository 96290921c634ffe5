// Records some steps of a run with PyTorch's profiler (Kineto) and writes them as a Chrome trace, one file a rank:
// every ATen operation, on CUDA every kernel, and as named ranges the step, its units and what they wait for, as the
// StepClock knows them ("unit layers.0", "gather layers.1", "dispatch", "experts", ...).
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/step_clock.h"
#include "run/profiled_steps.h"
#include "step/parallel_job.h"

namespace at {
struct RecordFunction;
}

namespace conclave {

class StepTracer final : private RangeListener {
 public:
  // `clock` is the step's; both outlive the tracer.
  StepTracer(ParallelJob& job, StepClock& clock, ProfiledSteps steps);
  ~StepTracer() override;

  // Around every step of the run, on the thread that computes. The trace is written after the last profiled step, or by
  // the destructor when the run ends earlier.
  void before_step(int64_t step);
  void after_step(int64_t step);

 private:
  void begin(const char* name, size_t unit) override;
  void end() override;
  void write();

  StepClock& clock_;
  ProfiledSteps steps_;
  bool on_cuda_;
  bool recording_ = false;
  std::filesystem::path file_;
  std::vector<std::string> units_;
  std::vector<std::unique_ptr<at::RecordFunction>> open_;  // innermost last
};

}  // namespace conclave
