#include "run/step_tracer.h"

#include <ATen/record_function.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <set>
#include <string_view>

#include "base/log.h"
#include "device/device.h"

namespace conclave {

namespace {

std::filesystem::path trace_file(const ParallelJob& job, const ProfiledSteps& steps) {
  return std::filesystem::path(job.job().run.output_dir) / "profile" /
         fmt::format("steps-{}-{}.rank-{}.json", steps.first, steps.last, job.rank());
}

}  // namespace

StepTracer::StepTracer(ParallelJob& job, StepClock& clock, ProfiledSteps steps)
    : clock_(clock),
      steps_(steps),
      on_cuda_(device_of(job.device()).facts().works_by_itself),
      file_(trace_file(job, steps)) {
  for (const UnitDeclaration& unit : job.model().declarations()) units_.push_back(unit.name);
}

StepTracer::~StepTracer() {
  if (!recording_) return;
  try {
    write();
  } catch (const std::exception& error) {
    spdlog::error("the profile could not be written: {}", error.what());
  }
}

void StepTracer::before_step(int64_t step) {
  if (recording_ || step < steps_.first || step > steps_.last) return;
  namespace profiler = torch::profiler::impl;
  const profiler::ProfilerConfig config(profiler::ProfilerState::KINETO);
  std::set<profiler::ActivityType> activities = {profiler::ActivityType::CPU};
  if (on_cuda_) activities.insert(profiler::ActivityType::CUDA);
  torch::autograd::profiler::prepareProfiler(config, activities);
  torch::autograd::profiler::enableProfiler(config, activities,
                                            {at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE});
  clock_.set_listener(this);
  recording_ = true;
}

void StepTracer::after_step(int64_t step) {
  if (recording_ && step >= steps_.last) write();
}

void StepTracer::write() {
  recording_ = false;
  clock_.set_listener(nullptr);
  open_.clear();
  const auto result = torch::autograd::profiler::disableProfiler();
  std::filesystem::create_directories(file_.parent_path());
  result->save(file_.string());
  spdlog::info("the profile is in {}", file_.string());
}

void StepTracer::begin(const char* name, size_t unit) {
  const bool computes = std::string_view(name) == name_of(Phase::computing);
  const std::string what = computes ? "unit" : name;
  const std::string range = unit < units_.size() ? fmt::format("{} {}", what, units_[unit]) : computes ? "step" : what;
  auto& function = open_.emplace_back(std::make_unique<at::RecordFunction>(at::RecordScope::USER_SCOPE));
  if (function->isActive()) function->before(range);
}

void StepTracer::end() {
  if (!open_.empty()) open_.pop_back();
}

}  // namespace conclave
