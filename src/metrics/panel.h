// The panel of a run on a terminal: where it stands, its losses as small curves, speed, memory, and how evenly the
// experts of each layer are loaded.
//
//   step 120/480  ━━━━━━━━────────────────────────  25 %   left 00:03:12
//   loss        3.4123  ▇▆▅▄▄▃▃▂▂▁▁▁  6.2404 at first
//   validation  3.5201  ▇▄▁  after step 100
//   speed       5,123 tokens/s, 0.40 s a step; lr 9.8e-05, gradient norm 0.81
//   memory      0.62 GiB (moments 46 %, parameters 23 %, gradients 23 %)
//   experts     busiest over mean 1.21; by layer ▂▃█▂  1.05 to 1.80 (layer 2)
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "metrics/curve.h"
#include "metrics/progress_text.h"
#include "metrics/terminal.h"

namespace conclave {

class Panel {
 public:
  Panel(int64_t steps, TerminalStyle style);

  void add(const Progress& progress);
  // None is wider than `columns`.
  std::vector<std::string> lines(double seconds_left, size_t columns) const;

 private:
  std::string head(double seconds_left) const;
  std::string losses() const;
  std::string validations() const;
  std::string experts() const;
  std::string labelled(const std::string& label, const std::string& text) const;

  int64_t steps_;
  TerminalStyle style_;
  Progress last_;
  Curve loss_;
  Curve validation_;
  double first_loss_ = 0;
  std::optional<int64_t> validated_step_;
  double last_validation_ = 0;
};

}  // namespace conclave
