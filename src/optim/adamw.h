// AdamW as an optimizer's rule (kernels/adamw.h has the formula).
#pragma once

#include <string_view>

#include "optim/optimizer.h"

namespace conclave {

class AdamW final : public OptimizerRule {
 public:
  // The first and the second moment, called as PyTorch calls them.
  static constexpr std::string_view exp_avg = "exp_avg";
  static constexpr std::string_view exp_avg_sq = "exp_avg_sq";

  explicit AdamW(const OptimizerConfig& config) : config_(config) {}

  std::vector<std::string> state() const override { return {std::string(exp_avg), std::string(exp_avg_sq)}; }
  void update(const OptimizerRange& range, const Update& update) const override;

 private:
  OptimizerConfig config_;
};

}  // namespace conclave
