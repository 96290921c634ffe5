#include "metrics/progress_text.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "metrics/terminal.h"

namespace conclave {
namespace {

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

}  // namespace

std::string grouped_digits(double value) {
  if (!std::isfinite(value)) return fmt::format("{}", value);
  std::string digits = fmt::format("{:.0f}", value);
  const size_t first = digits.front() == '-' ? 1 : 0;
  for (size_t end = digits.size(); end > first + 3; end -= 3) digits.insert(end - 3, 1, ',');
  return digits;
}

std::string memory_in_words(const Progress& progress) {
  return fmt::format("{:.2f} GiB", static_cast<double>(progress.peak_memory_bytes) / (1 << 30)) +
         largest_shares(progress.memory_of);
}

std::string losses_in_words(const std::vector<std::pair<std::string, double>>& sources) {
  std::string text;
  for (const auto& [name, loss] : sources) text += fmt::format("{}{} {:.4f}", text.empty() ? "" : ", ", name, loss);
  return text;
}

std::string format_progress(const Progress& progress, int64_t steps, std::optional<double> seconds_left) {
  const size_t width = fmt::formatted_size("{}", steps);
  const std::string sources = losses_in_words(progress.sources);
  std::string line = fmt::format(
      "step {:>{}}/{}  loss {:.4f}{}  grad norm {:.2f}  lr {:.2g}  {} tokens/s  imbalance {:.2f}", progress.step, width,
      steps, progress.loss, sources.empty() ? "" : " (" + sources + ")", progress.grad_norm, progress.lr,
      grouped_digits(progress.tokens_per_second), progress.expert_imbalance);
  if (seconds_left) line += fmt::format("  left {}", duration(*seconds_left));
  return line + "  memory " + memory_in_words(progress);
}

}  // namespace conclave
