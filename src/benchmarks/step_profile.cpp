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
#include "step/train_step.h"

namespace conclave {
namespace {

// One step of one rank: its duration, then seconds and in_flight of every row (units, step, total) and phase.
std::vector<double> numbers_of(double step_seconds, std::vector<StepClock::Times> times) {
  StepClock::Times total;
  for (const StepClock::Times& of_unit : times)
    for (size_t phase = 0; phase < phases; ++phase) {
      total.seconds[phase] += of_unit.seconds[phase];
      total.in_flight[phase] += of_unit.in_flight[phase];
    }
  double attributed = 0;
  for (double seconds : total.seconds) attributed += seconds;
  times.push_back(total);
  std::vector<double> numbers = {step_seconds, step_seconds - attributed};
  for (const StepClock::Times& row : times) {
    numbers.insert(numbers.end(), row.seconds.begin(), row.seconds.end());
    numbers.insert(numbers.end(), row.in_flight.begin(), row.in_flight.end());
  }
  return numbers;
}

double waited(const StepClock::Times& times) {
  double sum = 0;
  for (Phase phase : {Phase::gather, Phase::reduce, Phase::dispatch, Phase::offload, Phase::data})
    sum += times.seconds[static_cast<size_t>(phase)];
  return sum;
}

StepProfile profile_of(const double* numbers, size_t rows) {
  StepProfile profile;
  profile.step_seconds = numbers[0];
  profile.unattributed_seconds = numbers[1];
  profile.lowest_step_seconds = numbers[2];
  profile.highest_step_seconds = numbers[3];
  const double* next = numbers + 4;
  for (size_t row = 0; row < rows; ++row) {
    StepClock::Times times;
    std::copy_n(next, phases, times.seconds.begin());
    std::copy_n(next + phases, phases, times.in_flight.begin());
    next += 2 * phases;
    (row + 1 < rows ? profile.of_unit.emplace_back() : profile.total) = times;
  }
  return profile;
}

}  // namespace

StepProfile profile_steps(ParallelJob& job, const ProfileRequest& request) {
  BatchLoader loader(open_training(job), {job.job().data.micro_batch_size, job.world().size(), job.rank()});
  return profile_steps(job, request, batches_of(loader, job));
}

StepProfile profile_steps(ParallelJob& job, const ProfileRequest& request, const std::function<MicroBatch()>& next) {
  ForwardBackward forward_backward(job.model(), job.job(), {job.aux_coefficient(), job.job().moe.moe_z_loss_coeff});
  job.model().allocate_parameters();
  job.model().allocate_training_state();
  start_parameters(job);
  const Device& device = device_of(job.device());
  if (device.facts().works_by_itself) forward_backward.clock().set_settle([&device] { device.synchronize(); });
  if (request.kernels) forward_backward.clock().time_kernels();
  TrainStep train_step(job, forward_backward);

  std::vector<std::vector<double>> of_step;
  int64_t allocations_before = 0;
  std::optional<int64_t> synchronizations;
  for (int64_t step = 1; step <= request.untimed + request.steps; ++step) {
    if (step == request.untimed + 1) allocations_before = memory_report().large_allocations;
    job.axes().world().barrier();
    const auto start = std::chrono::steady_clock::now();
    if (const auto count = device.count_waits()) count(true);
    StepReport report = train_step.run(
        next, step, learning_rate(job.job().schedule, job.job().optimizer.lr, job.job().run.steps, step));
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (const auto count = device.count_waits()) {
      synchronizations = device.waits();
      count(false);
    }
    const bool measured = step > request.untimed;
    spdlog::info("step {} of {}{}: {:.3f} s", step, request.untimed + request.steps, measured ? "" : " (not measured)",
                 seconds);
    if (measured) of_step.push_back(numbers_of(seconds, std::move(report.times)));
  }

  const auto fresh_allocations = static_cast<double>(memory_report().large_allocations - allocations_before);

  const size_t rows = job.model().declarations().size() + 2;
  std::vector<double> medians;
  for (size_t i = 0; i < of_step.front().size(); ++i) {
    std::vector<double> values;
    for (const std::vector<double>& numbers : of_step) values.push_back(numbers[i]);
    medians.push_back(median(values));
    if (i == 1) {
      const auto by_duration = [](const auto& a, const auto& b) { return a[0] < b[0]; };
      medians.push_back((*std::min_element(of_step.begin(), of_step.end(), by_duration))[0]);
      medians.push_back((*std::max_element(of_step.begin(), of_step.end(), by_duration))[0]);
    }
  }
  const auto count = static_cast<int64_t>(medians.size());
  const at::Tensor own = at::tensor(medians, at::kDouble).to(job.device());
  at::Tensor all = at::empty({job.world().size() * count}, own.options());
  job.axes().world().all_gather(all, own).wait();
  all = all.to(at::kCPU);
  StepProfile slowest;
  for (int rank = 0; rank < job.world().size(); ++rank) {
    StepProfile profile = profile_of(all.const_data_ptr<double>() + rank * count, rows);
    profile.rank = rank;
    if (rank == 0 || waited(profile.total) > waited(slowest.total)) slowest = std::move(profile);
  }
  slowest.kernels = request.kernels;
  slowest.fresh_allocations = static_cast<int64_t>(job.sum_over_world({fresh_allocations})[0]);
  slowest.synchronizations = synchronizations;
  for (const UnitDeclaration& unit : job.model().declarations()) slowest.units.push_back(unit.name);
  return slowest;
}

}  // namespace conclave
