#include "moe/balancing.h"

#include "base/error.h"

namespace conclave {

BalanceReduction::BalanceReduction(Communicator& world, const std::vector<RoutingStatistics>& layers, int64_t tokens,
                                   at::Device device)
    : layers_(static_cast<int64_t>(layers.size())), experts_(layers.at(0).count_E.size(0)), device_(device) {
  at::Tensor sums = at::zeros({layers_ * experts_ + experts_ + 2}, at::kDouble);
  at::Tensor probability_sum = sums.narrow(0, layers_ * experts_, experts_);
  double logsumexp_square_sum = 0;
  for (int64_t layer = 0; layer < layers_; ++layer) {
    sums.narrow(0, layer * experts_, experts_).copy_(layers[layer].count_E);
    probability_sum.add_(layers[layer].probability_sum_E);
    logsumexp_square_sum += layers[layer].logsumexp_square_sum;
  }
  sums[-2] = logsumexp_square_sum;
  sums[-1] = static_cast<double>(tokens);
  sums_ = sums.to(device);
  pending_ = world.all_reduce(sums_);
}

Balance BalanceReduction::finish() {
  pending_.wait();
  const at::Tensor sums = sums_.to(at::kCPU);
  Balance balance;
  balance.count_LE = sums.narrow(0, 0, layers_ * experts_).view({layers_, experts_});
  balance.tokens = static_cast<int64_t>(sums[-1].item<double>());
  check_invariant(balance.tokens > 0, "a micro-step has {} tokens", balance.tokens);
  const double rows = static_cast<double>(layers_ * balance.tokens);
  const at::Tensor count_E = balance.count_LE.sum(0);
  const at::Tensor probability_E = sums.narrow(0, layers_ * experts_, experts_);
  balance.aux_loss = experts_ * (count_E * probability_E).sum().item<double>() / (rows * rows);
  balance.aux_gradient_E = (count_E * (experts_ / (rows * rows))).to(at::kFloat).to(device_);
  balance.z_loss = sums[-2].item<double>() / rows;
  balance.z_gradient = 1.0 / rows;
  return balance;
}

double expert_imbalance(const at::Tensor& count_LE) {
  return (std::get<0>(count_LE.max(1)) / count_LE.mean(1)).mean().item<double>();
}

}  // namespace conclave
