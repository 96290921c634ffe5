#include "metrics/progress_line.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "metrics/terminal.h"

namespace conclave {
namespace {

// Digits in groups of three, whatever the locale.
std::string grouped(double value) {
  if (!std::isfinite(value)) return fmt::format("{}", value);
  std::string digits = fmt::format("{:.0f}", value);
  const size_t first = digits.front() == '-' ? 1 : 0;
  for (size_t end = digits.size(); end > first + 3; end -= 3) digits.insert(end - 3, 1, ',');
  return digits;
}

// " (moments 46 %, parameters 23 %, gradients 23 %)": the three that take most.
std::string largest_shares(std::vector<std::pair<std::string, int64_t>> memory_of) {
  double sum = 0;
  for (const auto& [category, bytes] : memory_of) sum += static_cast<double>(bytes);
  if (sum <= 0) return "";
  std::stable_sort(memory_of.begin(), memory_of.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  memory_of.resize(std::min<size_t>(memory_of.size(), 3));
  std::string text;
  for (const auto& [category, bytes] : memory_of)
    text += fmt::format("{}{} {:.0f} %", text.empty() ? " (" : ", ", category, 100 * static_cast<double>(bytes) / sum);
  return text + ")";
}

// " (code 1.2345, chat 2.3456)"
std::string losses_of(const std::vector<std::pair<std::string, double>>& sources) {
  std::string text;
  for (const auto& [name, loss] : sources) text += fmt::format("{}{} {:.4f}", text.empty() ? " (" : ", ", name, loss);
  return text.empty() ? "" : text + ")";
}

}  // namespace

std::string format_progress(const Progress& progress, int64_t steps, std::optional<double> seconds_left) {
  const size_t width = fmt::formatted_size("{}", steps);
  std::string line =
      fmt::format("step {:>{}}/{}  loss {:.4f}{}  grad norm {:.2f}  lr {:.2g}  {} tokens/s  imbalance {:.2f}",
                  progress.step, width, steps, progress.loss, losses_of(progress.sources), progress.grad_norm,
                  progress.lr, grouped(progress.tokens_per_second), progress.expert_imbalance);
  if (seconds_left) line += fmt::format("  left {}", duration(*seconds_left));
  line += fmt::format("  memory {:.2f} GiB", static_cast<double>(progress.peak_memory_bytes) / (1 << 30));
  return line + largest_shares(progress.memory_of);
}

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
      on_terminal_(is_terminal(out)),
      time_left_(steps) {}

ProgressLine::~ProgressLine() {
  end_line();
}

void ProgressLine::show(const Progress& progress) {
  const double seconds_left = time_left_.after(progress.step, progress.step_seconds);
  if (!on_terminal_ && progress.step % log_every_ != 0 && progress.step != steps_) return;
  std::string line = format_progress(progress, steps_, seconds_left);
  if (on_terminal_) {
    rewrite_line(out_, std::move(line));
    line_open_ = true;
  } else {
    print(line + "\n");
  }
}

// A line that cannot be shown (a log on a full disk) is not worth ending a run for: no error is looked at.
void ProgressLine::print(const std::string& text) {
  std::fputs(text.c_str(), out_);
  std::fflush(out_);
}

void ProgressLine::end_line() {
  if (line_open_) print("\n");
  line_open_ = false;
}

}  // namespace conclave
