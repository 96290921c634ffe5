#include "benchmarks/step_profile.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/log.h"
#include "base/median.h"
#include "data/batch_loader.h"
#include "device/device.h"
#include "memory/memory_category.h"
#include "optim/learning_rate.h"
#include "run/model_source.h"
#include "step/open_data.h"
#include "step/train_step.h"

namespace conclave {
namespace {

// A single step.
StepProfile profile_of(double step_seconds, std::vector<StepClock::Times> of_unit) {
  StepProfile profile;
  profile.step_seconds = profile.lowest_step_seconds = profile.highest_step_seconds = step_seconds;
  for (const StepClock::Times& times : of_unit)
    for (size_t phase = 0; phase < phases; ++phase) {
      profile.total.seconds[phase] += times.seconds[phase];
      profile.total.in_flight[phase] += times.in_flight[phase];
    }
  double attributed = 0;
  for (double seconds : profile.total.seconds) attributed += seconds;
  profile.unattributed_seconds = step_seconds - attributed;
  profile.of_unit = std::move(of_unit);
  return profile;
}

// Every number that is measured, always in the same order.
template <class Visit>
void for_each_number(StepProfile& profile, const Visit& visit) {
  for (double* number : {&profile.step_seconds, &profile.lowest_step_seconds, &profile.highest_step_seconds,
                         &profile.unattributed_seconds})
    visit(*number);
  const auto visit_times = [&](StepClock::Times& times) {
    for (double& seconds : times.seconds) visit(seconds);
    for (double& seconds : times.in_flight) visit(seconds);
  };
  for (StepClock::Times& times : profile.of_unit) visit_times(times);
  visit_times(profile.total);
}

std::vector<double> numbers_of(StepProfile profile) {
  std::vector<double> numbers;
  for_each_number(profile, [&](double number) { numbers.push_back(number); });
  return numbers;
}

StepProfile medians_of(const std::vector<StepProfile>& steps) {
  std::vector<std::vector<double>> numbers_of_step;
  for (const StepProfile& step : steps) numbers_of_step.push_back(numbers_of(step));
  StepProfile medians = steps.front();
  size_t i = 0;
  for_each_number(medians, [&](double& number) {
    std::vector<double> values;
    for (const std::vector<double>& numbers : numbers_of_step) values.push_back(numbers[i]);
    number = median(values);
    ++i;
  });
  for (const StepProfile& step : steps) {
    medians.lowest_step_seconds = std::min(medians.lowest_step_seconds, step.step_seconds);
    medians.highest_step_seconds = std::max(medians.highest_step_seconds, step.step_seconds);
  }
  return medians;
}

double waited(const StepClock::Times& times) {
  double sum = 0;
  for (Phase phase : {Phase::gather, Phase::reduce, Phase::dispatch, Phase::offload, Phase::data})
    sum += times.seconds[static_cast<size_t>(phase)];
  return sum;
}

// The profile of the rank that waited the most, on all ranks. Collective.
StepProfile slowest_of(ParallelJob& job, StepProfile own) {
  const at::Tensor numbers = at::tensor(numbers_of(own), at::kDouble).to(job.device());
  at::Tensor all = at::empty({job.world().size() * numbers.numel()}, numbers.options());
  job.axes().world().all_gather(all, numbers).wait();
  all = all.to(at::kCPU);
  const double* next = all.const_data_ptr<double>();
  StepProfile slowest;
  for (int rank = 0; rank < job.world().size(); ++rank) {
    for_each_number(own, [&](double& number) { number = *next++; });
    own.rank = rank;
    if (rank == 0 || waited(own.total) > waited(slowest.total)) slowest = own;
  }
  return slowest;
}

}  // namespace

StepProfile profile_steps(ParallelJob& job, const ProfileRequest& request) {
  const auto training = open_training(job.job(), job.model_config().vocab_size);
  BatchLoader loader(training, {job.job().data.micro_batch_size, job.world().size(), job.rank()});
  const int64_t sequences = job.sequences_per_step();
  return profile_steps(job, request, {batches_of(loader, job), [&](int64_t step) {
                                        return training->content((step - 1) * sequences, sequences).targets;
                                      }});
}

StepProfile profile_steps(ParallelJob& job, const ProfileRequest& request, const ProfiledData& data) {
  ForwardBackward forward_backward(job.model(), job.settings());
  job.model().allocate_parameters();
  job.model().allocate_training_state();
  start_parameters(job);
  const Device& device = device_of(job.device());
  if (device.facts().works_by_itself) forward_backward.clock().set_settle([&device] { device.synchronize(); });
  if (request.kernels) forward_backward.clock().time_kernels();
  TrainStep train_step(job, forward_backward);

  std::vector<StepProfile> of_step;
  int64_t allocations_before = 0;
  std::optional<int64_t> synchronizations;
  for (int64_t step = 1; step <= request.untimed + request.steps; ++step) {
    if (step == request.untimed + 1) allocations_before = memory_report().large_allocations;
    job.axes().world().barrier();
    const auto start = std::chrono::steady_clock::now();
    if (const auto count = device.count_waits()) count(true);
    StepReport report =
        train_step.run(data.next, data.targets_of_source(step), step,
                       learning_rate(job.job().schedule, job.job().optimizer.lr, job.job().run.steps, step));
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (const auto count = device.count_waits()) {
      synchronizations = device.waits();
      count(false);
    }
    const bool measured = step > request.untimed;
    spdlog::info("step {} of {}{}: {:.3f} s", step, request.untimed + request.steps, measured ? "" : " (not measured)",
                 seconds);
    if (measured) of_step.push_back(profile_of(seconds, std::move(report.times)));
  }

  const auto fresh_allocations = static_cast<double>(memory_report().large_allocations - allocations_before);

  StepProfile slowest = slowest_of(job, medians_of(of_step));
  slowest.kernels = request.kernels;
  slowest.fresh_allocations = static_cast<int64_t>(job.sum_over_world({fresh_allocations})[0]);
  slowest.synchronizations = synchronizations;
  for (const UnitDeclaration& unit : job.model().declarations()) slowest.units.push_back(unit.name);
  return slowest;
}

}  // namespace conclave
