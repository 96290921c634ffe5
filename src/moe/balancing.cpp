#include "moe/balancing.h"

#include "base/error.h"

namespace conclave {
namespace {

// Where the numbers lie in the vector that the ranks sum.
struct Sums {
  at::Tensor count_LE;
  at::Tensor probability_E;
  at::Tensor aux_loss, logsumexp_square, tokens;  // scalars
};

Sums parts_of(const at::Tensor& sums, int64_t layers, int64_t experts) {
  return {sums.narrow(0, 0, layers * experts).view({layers, experts}), sums.narrow(0, layers * experts, experts),
          sums[-3], sums[-2], sums[-1]};
}

struct AuxLoss {
  double value;
  at::Tensor gradient_E;  // double
};

AuxLoss aux_loss_of(const Sums& sums) {
  const auto [layers, experts] = std::pair(sums.count_LE.size(0), sums.count_LE.size(1));
  const double rows = static_cast<double>(layers) * sums.tokens.item<double>();
  if (rows == 0) return {0.0, at::zeros({experts}, at::kDouble)};
  const at::Tensor gradient_E = sums.count_LE.sum(0) * (static_cast<double>(experts) / (rows * rows));
  return {(gradient_E * sums.probability_E).sum().item<double>(), gradient_E};
}

}  // namespace

BalanceReduction::BalanceReduction(Communicator& world, const std::vector<RoutingStatistics>& layers, int64_t tokens,
                                   at::Device device, AuxLossScope scope)
    : layers_(static_cast<int64_t>(layers.size())),
      experts_(layers.at(0).count_E.size(0)),
      device_(device),
      scope_(scope),
      ranks_(world.size()),
      own_(at::zeros({layers_ * experts_ + experts_ + 3}, at::kDouble)) {
  const Sums own = parts_of(own_, layers_, experts_);
  for (int64_t layer = 0; layer < layers_; ++layer) {
    own.count_LE[layer].copy_(layers[layer].count_E);
    own.probability_E.add_(layers[layer].probability_sum_E);
    own.logsumexp_square.add_(layers[layer].logsumexp_square_sum);
  }
  own.tokens.fill_(static_cast<double>(tokens));
  if (scope == AuxLossScope::each_rank) own.aux_loss.fill_(aux_loss_of(own).value);
  sums_ = own_.to(device, at::kDouble, /*non_blocking=*/false, /*copy=*/true);
  pending_ = world.all_reduce(sums_);
}

Balance BalanceReduction::finish() {
  pending_.wait();
  const Sums sums = parts_of(sums_.to(at::kCPU), layers_, experts_);
  Balance balance;
  balance.count_LE = sums.count_LE;
  balance.tokens = static_cast<int64_t>(sums.tokens.item<double>());
  check_invariant(balance.tokens > 0, "a micro-step has {} tokens", balance.tokens);
  AuxLoss aux = aux_loss_of(scope_ == AuxLossScope::all_ranks ? sums : parts_of(own_, layers_, experts_));
  if (scope_ == AuxLossScope::each_rank) {
    aux.value = sums.aux_loss.item<double>() / ranks_;
    aux.gradient_E.div_(ranks_);
  }
  balance.aux_loss = aux.value;
  balance.aux_gradient_E = aux.gradient_E.to(device_, at::kFloat);
  const auto rows = static_cast<double>(layers_ * balance.tokens);
  balance.z_loss = sums.logsumexp_square.item<double>() / rows;
  balance.z_gradient = 1.0 / rows;
  return balance;
}

double expert_imbalance(const at::Tensor& count_LE) {
  return (std::get<0>(count_LE.max(1)) / count_LE.mean(1)).mean().item<double>();
}

}  // namespace conclave
