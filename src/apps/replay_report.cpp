#include "apps/replay_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "apps/quantity_text.h"

namespace conclave {
namespace {

using nlohmann::ordered_json;

std::string percent(double share) {
  return fmt::format("{:.2f} %", 100 * share);
}
std::string ratio(double value) {
  return fmt::format("{:.3f}", value);
}

int64_t too_large(const Replay& replay, const DeviceDescription& device) {
  return std::count_if(replay.replayed.begin(), replay.replayed.end(), [&](const ReplayedStep& step) {
    return static_cast<double>(step.peak_bytes) > device.usable_bytes();
  });
}

const ReplayedStep& needing_most(const Replay& replay) {
  return *std::max_element(replay.replayed.begin(), replay.replayed.end(),
                           [](const auto& a, const auto& b) { return a.peak_bytes < b.peak_bytes; });
}

ordered_json json_of(const Distribution& of) {
  return {
      {"median", of.median}, {"p90", of.of_90}, {"p99", of.of_99}, {"worst", of.worst}, {"worst_step", of.worst_step}};
}

}  // namespace

std::string replay_text(const Replay& replay, const DeviceDescription& device) {
  std::string text = fmt::format("\nrouting of {}: {} steps ({} to {}) are {} steps of this job\n", replay.file,
                                 replay.recorded_steps, replay.first, replay.last, replay.steps);
  if (replay.unfinished_bytes > 0)
    text += fmt::format("  its last {} bytes are a part of a step, which a killed run leaves; they are left out\n",
                        replay.unfinished_bytes);
  if (replay.tokens_left_over > 0)
    text += fmt::format("  its last {} tokens fill no step and are left out\n", replay.tokens_left_over);
  if (replay.even < replay.steps)
    text += fmt::format(
        "  {} were run on paper: {} evenly spread, which the distribution is of, and those in which a rank has most "
        "rows, for the worst (--routing-steps 0 runs all)\n",
        replay.replayed.size(), replay.even);
  text += fmt::format("  {:<32}{:>12}{:>12}{:>12}{:>12}   worst step\n", "", "median", "90 %", "99 %", "worst");
  const auto line = [&](const char* name, const Distribution& of, auto&& words) {
    text += fmt::format("  {:<32}{:>12}{:>12}{:>12}{:>12}   {}\n", name, words(of.median), words(of.of_90),
                        words(of.of_99), words(of.worst), of.worst_step);
  };
  line("time of a step", replay.step_seconds, seconds_text);
  line("memory of the busiest rank", replay.peak_bytes, size_text);
  line("its rows over the mean", replay.imbalance, ratio);
  if (replay.has_capacity) line("choices dropped", replay.drop_rate, percent);
  if (replay.may_lend) line("rows computed by a helper", replay.lent_share, percent);
  const ReplayedStep& most = needing_most(replay);
  text += fmt::format("  most memory: rank {} in step {}, {}\n", most.busiest, most.first_recorded, most.moment);
  if (const int64_t count = too_large(replay, device); count > 0)
    text += fmt::format("  DOES NOT FIT in {} of the {} steps that were run on paper\n", count, replay.replayed.size());
  return text;
}

ordered_json replay_json(const Replay& replay, const DeviceDescription& device) {
  ordered_json steps = ordered_json::array();
  for (const ReplayedStep& step : replay.replayed)
    steps.push_back({{"recorded_step", step.first_recorded},
                     {"step_seconds", step.step_seconds},
                     {"peak_bytes", step.peak_bytes},
                     {"peak_rank", step.busiest},
                     {"peak_moment", step.moment},
                     {"imbalance", step.imbalance},
                     {"drop_rate", step.drop_rate},
                     {"lent_share", step.lent_share}});
  return {{"file", replay.file},
          {"recorded_steps", replay.recorded_steps},
          {"first_step", replay.first},
          {"last_step", replay.last},
          {"steps", replay.steps},
          {"evenly_spread", replay.even},
          {"tokens_left_over", replay.tokens_left_over},
          {"unfinished_bytes", replay.unfinished_bytes},
          {"steps_too_large", too_large(replay, device)},
          {"step_seconds", json_of(replay.step_seconds)},
          {"peak_bytes", json_of(replay.peak_bytes)},
          {"imbalance", json_of(replay.imbalance)},
          {"drop_rate", json_of(replay.drop_rate)},
          {"lent_share", json_of(replay.lent_share)},
          {"replayed", steps}};
}

}  // namespace conclave
