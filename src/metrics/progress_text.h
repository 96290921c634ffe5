// What a step's progress says, as one line:
//   step   120/1200  loss 3.4123  grad norm 0.81  lr 9.8e-05  5,123 tokens/s  imbalance 1.21  left 00:03:12
//   memory 0.62 GiB (moments 46 %, parameters 23 %, gradients 23 %)
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "metrics/record.h"

namespace conclave {

struct Progress {
  int64_t step = 0;  // 1-based
  double loss = 0;
  std::vector<std::pair<std::string, double>> sources = {};  // of a blend: names with their mean losses
  std::optional<double> validation_loss = {};                // of a validation that ended the step
  double grad_norm = 0;
  double lr = 0;
  double tokens_per_second = 0;
  double step_seconds = 0;
  double expert_imbalance = 0;  // rows of the busiest expert / mean rows of an expert; 1 is fair
  LayerNumbers imbalance_by_layer = {};
  int64_t peak_memory_bytes = 0;                                // of the rank with the most
  std::vector<std::pair<std::string, int64_t>> memory_of = {};  // bytes by category at the peak of this rank
};

// The line, without line feed. `seconds_left`: nothing before there is anything to estimate from.
std::string format_progress(const Progress& progress, int64_t steps, std::optional<double> seconds_left);

// Its parts, for the panel too.
std::string grouped_digits(double value);               // "5,123", whatever the locale
std::string memory_in_words(const Progress& progress);  // "0.62 GiB (moments 46 %, parameters 23 %)"
std::string losses_in_words(const std::vector<std::pair<std::string, double>>& sources);  // "code 1.2345, chat 2.3456"

}  // namespace conclave
