#include "metrics/progress_line.h"

#include <fmt/core.h>

#include <algorithm>

#include "metrics/terminal.h"

namespace conclave {
namespace {

using Clock = std::chrono::steady_clock;

// A panel is redrawn no more often than eyes follow.
constexpr auto least_between_panels = std::chrono::milliseconds(100);
constexpr auto most_between_lines = std::chrono::seconds(60);
constexpr int least_columns = 60, least_rows = 12;

}  // namespace

double TimeLeft::after(int64_t step, double step_seconds) {
  // Dividing by the sum of the weights makes the average exact from the first step on.
  constexpr double kept = 0.95;
  weighted_seconds_ = kept * weighted_seconds_ + step_seconds;
  weight_ = kept * weight_ + 1.0;
  return weighted_seconds_ / weight_ * static_cast<double>(std::max<int64_t>(steps_ - step, 0));
}

ProgressLine::ProgressLine(int64_t steps, int64_t log_every, std::FILE* out)
    : steps_(steps),
      log_every_(std::max<int64_t>(log_every, 1)),
      out_(out),
      manner_(Manner::lines),
      time_left_(steps),
      panel_(steps, terminal_style()) {
  if (!is_terminal(out)) return;
  const TerminalSize size = terminal_size(out);
  const bool fits = size.columns >= least_columns && size.rows >= least_rows;
  manner_ = fits && moves_its_cursor() ? Manner::panel : Manner::line_in_place;
}

ProgressLine::~ProgressLine() {
  if (line_open_) print("\n");
}

void ProgressLine::show(const Progress& progress) {
  shown_ = progress;
  seconds_left_ = time_left_.after(progress.step, progress.step_seconds);
  if (manner_ == Manner::panel)
    show_panel();
  else
    show_line();
}

void ProgressLine::show_panel() {
  panel_.add(shown_);
  const auto now = Clock::now();
  if (printed_ && now - *printed_ < least_between_panels && !is_last()) return;
  printed_ = now;
  const std::vector<std::string> lines = panel_.lines(seconds_left_, static_cast<size_t>(terminal_size(out_).columns));
  std::string text = panel_lines_ > 0 ? fmt::format("\r\x1b[{}A", panel_lines_) : "\r";
  for (const std::string& line : lines) text += line + "\x1b[K\n";
  print(text + "\x1b[J");
  panel_lines_ = static_cast<int>(lines.size());
}

void ProgressLine::show_line() {
  const std::string line = format_progress(shown_, steps_, seconds_left_);
  if (manner_ == Manner::line_in_place) {
    rewrite_line(out_, line);
    line_open_ = true;
    return;
  }
  const auto now = Clock::now();
  const bool is_due = !printed_ || now - *printed_ >= most_between_lines;
  if (!printed_) printed_ = now;  // the first minute begins with the first step
  if (shown_.step % log_every_ != 0 && !is_last() && !(is_due && now != *printed_)) return;
  printed_ = now;
  print(line + "\n");
}

// A line that cannot be shown (a log on a full disk) is not worth ending a run for: no error is looked at.
void ProgressLine::print(const std::string& text) {
  std::fputs(text.c_str(), out_);
  std::fflush(out_);
}

void ProgressLine::end_line() {
  if (line_open_) print("\n");
  line_open_ = false;
  if (panel_lines_ == 0) return;
  // The run's last panel stays.
  if (!is_last())
    print(fmt::format("\r\x1b[{}A\x1b[J{}\n", panel_lines_, format_progress(shown_, steps_, seconds_left_)));
  panel_lines_ = 0;
  printed_.reset();
}

}  // namespace conclave
