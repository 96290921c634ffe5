// What a run shows while it goes on: one line a step.
//   step   120/1200  loss 3.4123  grad norm 0.81  lr 9.8e-05  5,123 tokens/s  imbalance 1.21  left 00:03:12
//   memory 0.62 GiB (moments 46 %, parameters 23 %, gradients 23 %)
// On a terminal the line is rewritten in place. Elsewhere (a file, a pipe, a CI log) every log_every-th step and the
// last one get a line of their own.
#pragma once

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace conclave {

struct Progress {
  int64_t step = 0;  // 1-based
  double loss = 0;
  std::vector<std::pair<std::string, double>> sources = {};  // of a blend: names with their mean losses
  double grad_norm = 0;
  double lr = 0;
  double tokens_per_second = 0;
  double step_seconds = 0;
  double expert_imbalance = 0;    // rows of the busiest expert / mean rows of an expert; 1 is fair
  int64_t peak_memory_bytes = 0;  // of the rank with the most
  std::vector<std::pair<std::string, int64_t>> memory_of = {};  // bytes by category at the peak of this rank
};

// The line, without line feed. `seconds_left`: nothing before there is anything to estimate from.
std::string format_progress(const Progress& progress, int64_t steps, std::optional<double> seconds_left);

// Time left, from a moving average of the steps' durations that forgets with a half-life of about 14 steps, so that a
// slow first step or one long checkpoint does not rule the estimate.
class TimeLeft {
 public:
  explicit TimeLeft(int64_t steps) : steps_(steps) {}
  double after(int64_t step, double step_seconds);  // seconds from the end of `step` to the end of the run

 private:
  int64_t steps_;
  double weighted_seconds_ = 0;
  double weight_ = 0;
};

class ProgressLine {
 public:
  // `out` stays the caller's. `log_every` >= 1 counts where `out` is no terminal.
  ProgressLine(int64_t steps, int64_t log_every, std::FILE* out);
  ~ProgressLine();  // leaves the last line standing
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void show(const Progress& progress);

  // Ends a line that is being rewritten, so that what is printed next (a message, a validation) has a line of its own.
  void end_line();

 private:
  void print(const std::string& text);

  int64_t steps_;
  int64_t log_every_;
  std::FILE* out_;
  bool on_terminal_;
  bool line_open_ = false;
  TimeLeft time_left_;
};

}  // namespace conclave
