// conclave bench step: real training steps of a job, by unit and phase.
#include <fmt/core.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/bench.h"
#include "benchmarks/step_profile.h"

namespace conclave {
namespace {

constexpr Phase collectives[] = {Phase::gather, Phase::reduce, Phase::dispatch};

double seconds_in(const StepClock::Times& times, Phase phase) {
  return times.seconds[static_cast<size_t>(phase)];
}

double in_flight_in(const StepClock::Times& times, Phase phase) {
  return times.in_flight[static_cast<size_t>(phase)];
}

// The share of the time in flight that was not waited for; nothing where nothing travelled.
std::optional<double> overlapped(const StepClock::Times& times, Phase phase) {
  const double in_flight = in_flight_in(times, phase);
  if (in_flight <= 0) return std::nullopt;
  return std::max(0.0, 1 - seconds_in(times, phase) / in_flight);
}

// The kinds of kernels are columns of their own only where they were timed.
bool is_shown(int phase, bool kernels) {
  const bool is_kernel = phase > static_cast<int>(Phase::computing) && phase <= static_cast<int>(Phase::kernels);
  return kernels || !is_kernel;
}

void print_row(const std::string& name, const StepClock::Times& times, bool kernels) {
  std::string row = fmt::format("{:<14}", name);
  double sum = 0;
  for (int phase = 0; phase < phases; ++phase) {
    const double seconds = times.seconds[static_cast<size_t>(phase)];
    sum += seconds;
    if (is_shown(phase, kernels)) row += seconds > 0 ? fmt::format("{:>10.4f}", seconds) : fmt::format("{:>10}", "-");
  }
  fmt::print("{}{:>10.4f}\n", row, sum);
}

void print_table(const StepProfile& profile, int ranks, int64_t steps) {
  fmt::print(
      "{} steps on {} ranks: median {:.4f} s ({:.4f} to {:.4f}). Rank {} waited the most; the seconds of its median "
      "step "
      "by what it did.\n\n",
      steps, ranks, profile.step_seconds, profile.lowest_step_seconds, profile.highest_step_seconds, profile.rank);
  std::string header = fmt::format("{:<14}", "unit");
  for (int phase = 0; phase < phases; ++phase)
    if (is_shown(phase, profile.kernels)) header += fmt::format("{:>10}", name_of(static_cast<Phase>(phase)));
  fmt::print("{}{:>10}\n", header, "sum");
  for (size_t i = 0; i < profile.units.size(); ++i) print_row(profile.units[i], profile.of_unit[i], profile.kernels);
  print_row("whole step", profile.of_unit.back(), profile.kernels);
  print_row("total", profile.total, profile.kernels);
  fmt::print("in no phase: {:.4f} s, {:.2f} % of the step\n\n", profile.unattributed_seconds,
             100 * profile.unattributed_seconds / profile.step_seconds);
  fmt::print("all ranks together asked the system {} times for 1 MiB of memory or more\n", profile.fresh_allocations);
  if (profile.synchronizations)
    fmt::print("the host waited for the device {} times in the last step\n", *profile.synchronizations);
  for (Phase phase : collectives) {
    const auto share = overlapped(profile.total, phase);
    if (!share) continue;
    fmt::print("{:<9} in flight {:.4f} s, waited for {:.4f} s: {:.0f} % of it behind computation\n", name_of(phase),
               in_flight_in(profile.total, phase), seconds_in(profile.total, phase), 100 * *share);
  }
}

nlohmann::ordered_json json_of(const StepClock::Times& times, bool kernels) {
  nlohmann::ordered_json object;
  for (int phase = 0; phase < phases; ++phase)
    if (is_shown(phase, kernels)) object[name_of(static_cast<Phase>(phase))] = times.seconds[phase];
  for (Phase phase : collectives) object[fmt::format("{}_in_flight", name_of(phase))] = in_flight_in(times, phase);
  return object;
}

void print_json(const StepProfile& profile, int ranks, int64_t steps) {
  nlohmann::ordered_json object = {{"ranks", ranks},
                                   {"rank", profile.rank},
                                   {"steps", steps},
                                   {"step_seconds", profile.step_seconds},
                                   {"lowest_step_seconds", profile.lowest_step_seconds},
                                   {"highest_step_seconds", profile.highest_step_seconds},
                                   {"unattributed_seconds", profile.unattributed_seconds},
                                   {"fresh_allocations", profile.fresh_allocations},
                                   {"total", json_of(profile.total, profile.kernels)}};
  if (profile.synchronizations) object["synchronizations"] = *profile.synchronizations;
  for (size_t i = 0; i < profile.units.size(); ++i)
    object["units"][profile.units[i]] = json_of(profile.of_unit[i], profile.kernels);
  object["whole_step"] = json_of(profile.of_unit.back(), profile.kernels);
  for (Phase phase : collectives) {
    const auto share = overlapped(profile.total, phase);
    object["overlapped"][name_of(phase)] = share ? nlohmann::ordered_json(*share) : nlohmann::ordered_json();
  }
  std::cout << object.dump() << std::endl;
}

}  // namespace

void add_bench_step(CLI::App& bench, int& exit_code) {
  auto kernels = std::make_shared<bool>(false);
  CLI::App* command = add_bench_of_steps(
      bench, exit_code, "step",
      "training steps of a job: seconds computing and waiting, by unit; writes no checkpoint and no metrics",
      "computing  arithmetic of the unit, or of the step as a whole; with --profile what is left of it beside\n"
      "           products (matrix products), attention (scores and softmax), permute (rows into another order)\n"
      "           and kernels (all others)\n"
      "gather     waiting for its parameters from other ranks\n"
      "reduce     waiting for sums over the ranks: of its gradients, and of losses and routing statistics\n"
      "dispatch   waiting for routed rows on their way to experts and back\n"
      "offload    waiting for layer inputs on their way to the host and back\n"
      "optimizer  the norm of the gradient and AdamW; data: waiting for the next batch\n\n"
      "In flight is the time from the start of a collective to the end of the wait for it. Each number is a median "
      "over the "
      "steps. On a GPU the host waits for the device wherever a phase ends, so a step takes somewhat longer than in "
      "training.",
      [kernels](ParallelJob& job, ProfileRequest request, bool json) {
        request.kernels = *kernels;
        const StepProfile profile = profile_steps(job, request);
        if (job.is_first()) (json ? print_json : print_table)(profile, job.world().size(), request.steps);
      });
  command->add_flag("--profile", *kernels,
                    "computing divided further: products, attention, permute, other kernels, and what is none of them");
}

}  // namespace conclave
