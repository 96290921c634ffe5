#include "run/run_clock.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <sstream>

#include "run/run_folder.h"

namespace conclave {

RunClock::RunClock(const Job& job, double now)
    : saves_(job.checkpoint.saves()),
      save_every_(job.checkpoint.every_minutes * 60),
      deadline_(job.run.stop_after ? static_cast<double>(job.run.stop_after->seconds) : 0),
      last_save_(now) {}

void RunClock::count_iteration(double seconds) {
  longest_iteration_ = std::max(longest_iteration_, seconds);
}

void RunClock::count_save_begin(double now) {
  last_save_ = now;
  saved_once_ = true;
}

void RunClock::count_save(double seconds) {
  longest_save_ = std::max(longest_save_, seconds);
}

bool RunClock::save_is_due(double now) const {
  if (!saves_) return false;
  if (save_every_ > 0 && now - last_save_ >= save_every_) return true;
  return deadline_ > 0 && !saved_once_ && now >= first_save_at * deadline_;
}

bool RunClock::deadline_is_near(double now, bool saving) const {
  if (deadline_ == 0) return false;
  const double saves = saves_ ? longest_save_ * (saving ? 2 : 1) : 0;
  return now + margin * (longest_iteration_ + saves) + end_seconds > deadline_;
}

std::string what_is_kept(const Job& job) {
  const CheckpointConfig& checkpoint = job.checkpoint;
  if (!checkpoint.saves())
    return "nothing of this run will be saved: checkpoint.every and checkpoint.every_minutes are 0";
  std::string when;
  if (checkpoint.every > 0) when += fmt::format("every {} steps, ", checkpoint.every);
  if (checkpoint.every_minutes > 0) when += fmt::format("every {} minutes, ", checkpoint.every_minutes);
  const std::string kept = checkpoint.keep == 1 ? "newest is kept" : fmt::format("newest {} are kept", checkpoint.keep);
  const std::string for_good =
      checkpoint.keep_every > 0 ? fmt::format(", those of every {} steps for good", checkpoint.keep_every) : "";
  return fmt::format("checkpoints are saved {}and after the last step, in {}; the {}{}", when,
                     checkpoints_folder(job).string(), kept, for_good);
}

double seconds_since_process_start() {
  std::ifstream file("/proc/self/stat");
  std::string text;
  std::getline(file, text);
  std::istringstream fields(text.substr(text.rfind(')') + 1));  // the name in front may hold anything
  std::string field;
  for (int number = 3; number <= 22; ++number) fields >> field;  // proc(5): starttime is the 22nd
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  const double ticks_per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9 -
         std::stod(field) / ticks_per_second;
}

}  // namespace conclave
