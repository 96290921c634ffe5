#include "moe/dead_experts.h"

#include <ATen/ATen.h>

#include "base/error.h"

namespace conclave {

DeadExperts::DeadExperts(int64_t layers, int64_t experts) : steps_LE_(at::zeros({layers, experts}, at::kDouble)) {}

void DeadExperts::finish_step(const at::Tensor& count_LE) {
  const at::Tensor starved_LE = (count_LE < count_LE.mean(1, /*keepdim=*/true) * share_of_mean).to(at::kDouble);
  steps_LE_ = (steps_LE_ + 1) * starved_LE;
}

at::Tensor DeadExperts::dead_L() const {
  return (steps_LE_ >= steps).sum(1).to(at::kDouble);
}

void DeadExperts::restore(const at::Tensor& state_LE) {
  check_invariant(state_LE.sizes() == steps_LE_.sizes(), "steps without tokens of {} experts, not of {}",
                  state_LE.numel(), steps_LE_.numel());
  steps_LE_ = state_LE.to(at::kCPU, at::kDouble, /*non_blocking=*/false, /*copy=*/true);
}

}  // namespace conclave
