// What a run should not hide until somebody looks at its metrics: experts that learn nothing, a load that stays uneven,
// a loss that runs away. Each is said once, with what can be done about it.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "config/job.h"
#include "moe/dead_experts.h"

namespace conclave {

class RunWarnings {
 public:
  // The load is judged over so many steps together, because one step's is noisy.
  static constexpr int64_t window = 100;
  // A loss is far above its start when this many steps in a row are above it by half of it, and by 1 at least.
  static constexpr size_t steps_of_divergence = 10;

  // `top_k`: of the model's router. `layers`: those of the model that have experts. `job` outlives this object.
  RunWarnings(const Job& job, int64_t top_k, std::vector<int64_t> layers)
      : job_(job), top_k_(top_k), layers_(std::move(layers)) {}

  // After a step that changed the weights: the warnings that are due, mostly none. count [L,E] double, CPU: the choices
  // that fell on each expert.
  std::vector<std::string> after_step(int64_t step, double lm_loss, const at::Tensor& count_LE,
                                      const DeadExperts& dead);

 private:
  std::optional<std::string> of_dead_experts(const DeadExperts& dead);
  std::optional<std::string> of_imbalance(const at::Tensor& count_LE);
  std::optional<std::string> of_divergence(double lm_loss);
  std::string balancing_remedy() const;
  std::string layers_with(const at::Tensor& dead_L) const;

  const Job& job_;
  int64_t top_k_;
  std::vector<int64_t> layers_;
  bool told_of_dead_experts_ = false;
  bool told_of_imbalance_ = false;
  bool told_of_divergence_ = false;
  at::Tensor window_count_LE_;  // the sum over the steps of the window
  int64_t window_steps_ = 0;
  std::optional<double> imbalance_before_;  // of the window before
  std::optional<double> first_loss_;
  size_t steps_above_ = 0;  // in a row, whose loss is far above its start
};

}  // namespace conclave
