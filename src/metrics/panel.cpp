#include "metrics/panel.h"

#include <fmt/core.h>

#include <algorithm>
#include <limits>

#include "base/printable.h"

namespace conclave {
namespace {

constexpr size_t curve_columns = 32;

std::string bar(double done, size_t columns, bool has_unicode) {
  const auto filled = static_cast<size_t>(std::clamp(done, 0.0, 1.0) * static_cast<double>(columns));
  std::string text;
  for (size_t column = 0; column < columns; ++column)
    text += column < filled ? (has_unicode ? "━" : "=") : (has_unicode ? "─" : "-");
  return text;
}

}  // namespace

Panel::Panel(int64_t steps, TerminalStyle style)
    : steps_(steps), style_(style), loss_(curve_columns), validation_(curve_columns) {}

void Panel::add(const Progress& progress) {
  if (loss_.is_empty()) first_loss_ = progress.loss;
  last_ = progress;
  loss_.add(progress.loss);
  if (!progress.validation_loss) return;
  validation_.add(*progress.validation_loss);
  last_validation_ = *progress.validation_loss;
  validated_step_ = progress.step;
}

std::vector<std::string> Panel::lines(double seconds_left, size_t columns) const {
  std::vector<std::string> lines = {head(seconds_left), losses()};
  if (!last_.sources.empty()) lines.push_back(labelled("sources", printable(losses_in_words(last_.sources))));
  if (validated_step_) lines.push_back(validations());
  lines.push_back(labelled(
      "speed", fmt::format("{} tokens/s, {:.2f} s a step; lr {:.2g}, gradient norm {:.2f}",
                           grouped_digits(last_.tokens_per_second), last_.step_seconds, last_.lr, last_.grad_norm)));
  lines.push_back(labelled("memory", memory_in_words(last_)));
  if (!last_.imbalance_by_layer.empty()) lines.push_back(experts());
  for (std::string& line : lines) line = cut_to_columns(line, columns);
  return lines;
}

std::string Panel::labelled(const std::string& label, const std::string& text) const {
  return dim(fmt::format("{:<12}", label), style_) + text;
}

std::string Panel::head(double seconds_left) const {
  const double done = static_cast<double>(last_.step) / static_cast<double>(std::max<int64_t>(steps_, 1));
  return fmt::format("{}  {}  {:.0f} %   left {}", bold(fmt::format("step {}/{}", last_.step, steps_), style_),
                     bar(done, curve_columns, style_.has_unicode), 100 * done, duration(seconds_left));
}

std::string Panel::losses() const {
  return labelled("loss",
                  fmt::format("{:.4f}  {}  {:.4f} at first", last_.loss, loss_.drawn(style_.has_unicode), first_loss_));
}

std::string Panel::validations() const {
  return labelled("validation", fmt::format("{:.4f}  {}  after step {}", last_validation_,
                                            validation_.drawn(style_.has_unicode), *validated_step_));
}

std::string Panel::experts() const {
  const LayerNumbers& layers = last_.imbalance_by_layer;
  Curve curve(curve_columns);
  double least = std::numeric_limits<double>::infinity();
  size_t most = 0;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    if (!layers[layer]) continue;  // without experts
    curve.add(*layers[layer]);
    least = std::min(least, *layers[layer]);
    if (!layers[most] || *layers[layer] > *layers[most]) most = layer;
  }
  return labelled("experts", fmt::format("busiest over mean {:.2f}; by layer {}  {:.2f} to {:.2f} (layer {})",
                                         last_.expert_imbalance, curve.drawn(style_.has_unicode), least,
                                         layers[most].value_or(1), most));
}

}  // namespace conclave
