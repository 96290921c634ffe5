// What a run shows while it goes on. A terminal that is large enough has a panel that is redrawn in place (panel.h); a
// small one has one line that is rewritten. Elsewhere (a file, a pipe, a CI log) every log_every-th step and the last
// one get a line of their own, and so does a step that ends a minute after the last line.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

#include "metrics/panel.h"
#include "metrics/progress_text.h"

namespace conclave {

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
  ~ProgressLine();  // leaves the last line, or the panel, standing
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void show(const Progress& progress);

  // Ends what is being rewritten, so that what is printed next (a message, a validation) has a line of its own. A panel
  // makes room for it, and leaves the line of its step behind.
  void end_line();

 private:
  enum class Manner { panel, line_in_place, lines };

  void show_panel();
  void show_line();
  void print(const std::string& text);
  bool is_last() const { return shown_.step == steps_; }

  int64_t steps_;
  int64_t log_every_;
  std::FILE* out_;
  Manner manner_;
  Progress shown_;           // of the last call of show()
  double seconds_left_ = 0;  // then
  bool line_open_ = false;
  int panel_lines_ = 0;  // that stand on the terminal; 0: none
  TimeLeft time_left_;
  Panel panel_;
  std::optional<std::chrono::steady_clock::time_point> printed_;
};

}  // namespace conclave
