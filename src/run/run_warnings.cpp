#include "run/run_warnings.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace conclave {
namespace {

// Max / mean of an expert's choices, the mean over the layers.
double imbalance_of(const at::Tensor& count_LE) {
  return (count_LE.amax(1) / count_LE.mean(1)).mean().item<double>();
}

}  // namespace

std::vector<std::string> RunWarnings::after_step(int64_t step, double lm_loss, const at::Tensor& count_LE,
                                                 const DeadExperts& dead) {
  std::vector<std::string> due;
  const auto add = [&](std::optional<std::string> warning) {
    if (warning) due.push_back(fmt::format("step {}: {}", step, *warning));
  };
  if (count_LE.defined()) {
    add(of_dead_experts(dead));
    add(of_imbalance(count_LE));
  }
  add(of_divergence(lm_loss));
  return due;
}

std::optional<std::string> RunWarnings::of_dead_experts(const DeadExperts& dead) {
  if (told_of_dead_experts_) return std::nullopt;
  const at::Tensor dead_L = dead.dead_L();
  const auto count = static_cast<int64_t>(dead_L.sum().item<double>());
  if (count == 0) return std::nullopt;
  told_of_dead_experts_ = true;
  return fmt::format(
      "{} of {} experts are dead: in each of the last {:.0f} steps they got less than {:.0f} % of the mean, so they "
      "learn nothing ({}). {} (docs/balancing.md)",
      count, dead.state_LE().numel(), DeadExperts::steps, 100 * DeadExperts::share_of_mean, layers_with(dead_L),
      balancing_remedy());
}

std::optional<std::string> RunWarnings::of_imbalance(const at::Tensor& count_LE) {
  if (told_of_imbalance_) return std::nullopt;
  window_count_LE_ = window_steps_ == 0 ? count_LE : window_count_LE_ + count_LE;
  if (++window_steps_ < window) return std::nullopt;
  window_steps_ = 0;
  const double now = imbalance_of(window_count_LE_);
  const std::optional<double> before = std::exchange(imbalance_before_, now);
  const double most = static_cast<double>(count_LE.size(1)) / static_cast<double>(top_k_);
  const double uneven = std::min(2.0, (1 + most) / 2);
  // The first window is the start, where any router is uneven; later it should at least become better.
  if (!before || now < uneven || now < 0.9 * *before) return std::nullopt;
  told_of_imbalance_ = true;
  return fmt::format(
      "the load of the experts stays uneven: over the last {} steps the busiest expert of a layer got {:.1f} times the "
      "mean, and {:.1f} times in the {} steps before (1 is even, {:.1f} the most there can be). {} (docs/balancing.md)",
      window, now, *before, window, most, balancing_remedy());
}

std::optional<std::string> RunWarnings::of_divergence(double lm_loss) {
  if (told_of_divergence_) return std::nullopt;
  if (!first_loss_) first_loss_ = lm_loss;
  const double far_above = *first_loss_ + std::max(1.0, *first_loss_ / 2);
  steps_above_ = lm_loss > far_above ? steps_above_ + 1 : 0;
  if (steps_above_ < steps_of_divergence) return std::nullopt;
  told_of_divergence_ = true;
  return fmt::format(
      "the loss is {:.2f}, and was {:.2f} at the start: the run diverges. Lower optimizer.lr ({}), lengthen "
      "schedule.warmup_steps ({}){}, and go back to an earlier checkpoint or begin anew",
      lm_loss, *first_loss_, job_.optimizer.lr, job_.schedule.warmup_steps,
      job_.optimizer.grad_clip == 0 ? ", set optimizer.grad_clip (0) to 1" : "");
}

std::string RunWarnings::layers_with(const at::Tensor& dead_L) const {
  std::vector<int64_t> layers;
  for (int64_t mixture = 0; mixture < dead_L.size(0); ++mixture)
    if (dead_L[mixture].item<double>() > 0) layers.push_back(layers_.at(static_cast<size_t>(mixture)));
  const size_t count = layers.size();
  layers.resize(std::min<size_t>(count, 8));
  return fmt::format("{} {}{}", count == 1 ? "layer" : "layers", fmt::join(layers, ", "), count > 8 ? ", ..." : "");
}

std::string RunWarnings::balancing_remedy() const {
  const MoeConfig& moe = job_.moe;
  switch (moe.moe_load_balancing) {
    case LoadBalancing::none:
      return "Set moe.moe_load_balancing (none) to aux_loss";
    case LoadBalancing::bias:
      return fmt::format("Raise moe.bias_update_rate ({})", moe.bias_update_rate);
    case LoadBalancing::sinkhorn:
      return fmt::format("Raise moe.sinkhorn_iterations ({})", moe.sinkhorn_iterations);
    case LoadBalancing::balanced:
    case LoadBalancing::aux_loss:
      break;
  }
  if (moe.aux_loss_layers != AuxLossLayers::each)
    return "Set moe.aux_loss_layers (together) to each, which evens out each layer";
  return "Raise moe.moe_aux_loss_coeff, or set moe.moe_load_balancing (aux_loss) to bias or sinkhorn";
}

}  // namespace conclave
