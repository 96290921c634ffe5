#include "moe/load_statistics.h"

#include <ATen/ATen.h>

#include <cmath>

namespace conclave {

void LoadStatistics::add(const Balance& micro_step) {
  const auto add_to = [&](at::Tensor& sum, const at::Tensor& term) {
    sum = micro_steps_ == 0 ? term.clone() : sum + term;
  };
  add_to(count_LE_, micro_step.count_LE);
  add_to(aux_loss_L_, micro_step.aux_loss_L);
  add_to(z_loss_L_, micro_step.z_loss_L);
  add_to(confidence_L_, micro_step.confidence_L);
  ++micro_steps_;
}

at::Tensor LoadStatistics::share_LE() const {
  return count_LE_ / count_LE_.sum(1, /*keepdim=*/true);
}

at::Tensor LoadStatistics::imbalance_L() const {
  return count_LE_.amax(1) / count_LE_.mean(1);
}

at::Tensor LoadStatistics::entropy_L() const {
  const int64_t experts = count_LE_.size(1);
  if (experts == 1) return at::ones({count_LE_.size(0)}, at::kDouble);  // the one expert has all, which is even
  return at::special_entr(share_LE()).sum(1) / std::log(static_cast<double>(experts));
}

at::Tensor LoadStatistics::aux_loss_L() const {
  return aux_loss_L_ / static_cast<double>(micro_steps_);
}

at::Tensor LoadStatistics::z_loss_L() const {
  return z_loss_L_ / static_cast<double>(micro_steps_);
}

at::Tensor LoadStatistics::confidence_L() const {
  return confidence_L_ / static_cast<double>(micro_steps_);
}

}  // namespace conclave
