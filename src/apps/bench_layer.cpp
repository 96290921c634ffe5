// conclave bench layer: one decoder layer of a job's steps, forward and backward, by kind of work.
#include <fmt/core.h>

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "apps/bench.h"
#include "base/median.h"

namespace conclave {
namespace {

struct LayerTimes {
  int64_t layers = 0;
  double tokens = 0;               // of a rank in a step
  StepClock::Times of_a_layer;     // medians over the layers
  double lowest = 0, highest = 0;  // seconds of the fastest and the slowest layer

  double seconds() const { return sum(of_a_layer); }
  static double sum(const StepClock::Times& times) {
    double seconds = 0;
    for (const double phase : times.seconds) seconds += phase;
    return seconds;
  }
};

LayerTimes layer_times(const StepProfile& profile, ParallelJob& job) {
  LayerTimes times;
  times.tokens = static_cast<double>(job.tokens_per_step() / job.world().size());
  std::vector<StepClock::Times> layers;
  for (size_t i = 0; i < profile.units.size(); ++i)
    if (profile.units[i].find("layers.") != std::string::npos) layers.push_back(profile.of_unit[i]);
  times.layers = static_cast<int64_t>(layers.size());
  std::vector<double> sums;
  for (const StepClock::Times& layer : layers) sums.push_back(LayerTimes::sum(layer));
  for (size_t phase = 0; phase < phases; ++phase) {
    std::vector<double> seconds;
    for (const StepClock::Times& layer : layers) seconds.push_back(layer.seconds[phase]);
    times.of_a_layer.seconds[phase] = median(std::move(seconds));
  }
  times.lowest = *std::min_element(sums.begin(), sums.end());
  times.highest = *std::max_element(sums.begin(), sums.end());
  return times;
}

void print_table(const LayerTimes& times) {
  fmt::print(
      "one of {} decoder layers, forward and backward of {:.0f} tokens a rank: {:.4f} s ({:.4f} to {:.4f}), {:.1f} us "
      "a token\n\n",
      times.layers, times.tokens, times.seconds(), times.lowest, times.highest, times.seconds() / times.tokens * 1e6);
  for (int phase = 0; phase < phases; ++phase) {
    const double seconds = times.of_a_layer.seconds[static_cast<size_t>(phase)];
    if (seconds > 0)
      fmt::print("{:<12}{:>10.4f} s{:>7.1f} %\n", name_of(static_cast<Phase>(phase)), seconds,
                 100 * seconds / times.seconds());
  }
}

void print_json(const LayerTimes& times) {
  nlohmann::ordered_json object = {{"layers", times.layers},
                                   {"tokens", times.tokens},
                                   {"seconds", times.seconds()},
                                   {"lowest_seconds", times.lowest},
                                   {"highest_seconds", times.highest}};
  for (int phase = 0; phase < phases; ++phase)
    object["phases"][name_of(static_cast<Phase>(phase))] = times.of_a_layer.seconds[static_cast<size_t>(phase)];
  std::cout << object.dump() << std::endl;
}

}  // namespace

void add_bench_layer(CLI::App& bench, int& exit_code) {
  add_bench_of_steps(
      bench, exit_code, "layer", "one decoder layer of a job's steps, forward and backward: seconds by kind of work",
      "Medians over the layers of whole training steps, so that parameters are gathered, rows travel and gradients are "
      "reduced as they are in training. The words are those of `conclave bench step --profile`.",
      [](ParallelJob& job, ProfileRequest request, bool json) {
        request.kernels = true;
        const StepProfile profile = profile_steps(job, request);
        if (job.is_first()) (json ? print_json : print_table)(layer_times(profile, job));
      });
}

}  // namespace conclave
