#include "moe/balancing.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "kernels/values.h"
#include "moe/balance_message.h"

namespace conclave {
namespace {

// Where the numbers lie in the vector that the ranks sum.
struct Sums {
  at::Tensor count_LE, probability_LE;
  at::Tensor logsumexp_square_L, confidence_L;
  at::Tensor aux_loss, tokens;  // scalars

  Sums(const at::Tensor& message, int64_t layers, int64_t experts) {
    int64_t begin = 0;
    const auto next = [&](int64_t count) {
      at::Tensor part = message.narrow(0, begin, count);
      begin += count;
      return part;
    };
    count_LE = next(layers * experts).view({layers, experts});
    probability_LE = next(layers * experts).view({layers, experts});
    logsumexp_square_L = next(layers);
    confidence_L = next(layers);
    aux_loss = next(1);
    tokens = next(1);
    check_invariant(begin == message.numel(), "a balance message of {} numbers has {}", begin, message.numel());
  }
};

// Of groups G of layers whose rows are counted together.
struct AuxLoss {
  at::Tensor value_G;      // double
  at::Tensor gradient_GE;  // double
};

AuxLoss aux_loss_of(const at::Tensor& count_GE, const at::Tensor& probability_GE, double rows) {
  if (rows == 0) return {at::zeros({count_GE.size(0)}, at::kDouble), at::zeros_like(count_GE)};
  const at::Tensor gradient_GE = count_GE * (static_cast<double>(count_GE.size(1)) / (rows * rows));
  return {(gradient_GE * probability_GE).sum(1), gradient_GE};
}

AuxLoss aux_loss_of_each_layer(const Sums& sums) {
  return aux_loss_of(sums.count_LE, sums.probability_LE, sums.tokens.item<double>());
}

struct ModelAuxLoss {
  double value;
  at::Tensor gradient_LE;  // double
};

ModelAuxLoss aux_loss_of(const Sums& sums, AuxLossLayers layers) {
  const int64_t count = sums.count_LE.size(0);
  if (layers == AuxLossLayers::each) {
    const AuxLoss each = aux_loss_of_each_layer(sums);
    return {each.value_G.mean().item<double>(), each.gradient_GE / static_cast<double>(count)};
  }
  const AuxLoss together = aux_loss_of(sums.count_LE.sum(0, /*keepdim=*/true), sums.probability_LE.sum(0, true),
                                       static_cast<double>(count) * sums.tokens.item<double>());
  return {together.value_G.item<double>(), together.gradient_GE.expand_as(sums.count_LE)};
}

}  // namespace

BalanceReduction::BalanceReduction(Communicator& world, const std::vector<RoutingStatistics>& layers, int64_t tokens,
                                   at::Device device, const AuxLossOptions& options)
    : layers_(static_cast<int64_t>(layers.size())),
      experts_(layers.at(0).count_E.size(0)),
      device_(device),
      options_(options),
      ranks_(world.size()),
      own_(at::zeros({balance_message_numbers(layers_, experts_)}, at::device(device).dtype(at::kDouble))) {
  const Sums own(own_, layers_, experts_);
  for (int64_t layer = 0; layer < layers_; ++layer) {
    own.count_LE[layer].copy_(layers[layer].count_E);
    own.probability_LE[layer].copy_(layers[layer].probability_sum_E);
    own.logsumexp_square_L[layer].copy_(layers[layer].logsumexp_square_sum);
    own.confidence_L[layer].copy_(layers[layer].confidence_sum);
  }
  own.tokens.fill_(static_cast<double>(tokens));
  if (options.scope == AuxLossScope::each_rank) own.aux_loss.fill_(aux_loss_of(own, options.layers).value);
  sums_ = own_.clone();
  pending_ = world.all_reduce(sums_);
}

Balance BalanceReduction::finish() {
  pending_.wait();
  const Sums sums(to_host(sums_), layers_, experts_);
  Balance balance;
  balance.count_LE = sums.count_LE;
  balance.own_count_LE = Sums(own_, layers_, experts_).count_LE;
  balance.tokens = static_cast<int64_t>(sums.tokens.item<double>());
  check_invariant(balance.tokens > 0, "a micro-step has {} tokens", balance.tokens);
  ModelAuxLoss aux = options_.scope == AuxLossScope::all_ranks
                         ? aux_loss_of(sums, options_.layers)
                         : aux_loss_of(Sums(to_host(own_), layers_, experts_), options_.layers);
  if (options_.scope == AuxLossScope::each_rank) {
    aux.value = sums.aux_loss.item<double>() / ranks_;
    aux.gradient_LE = aux.gradient_LE / ranks_;
  }
  balance.aux_loss = aux.value;
  balance.aux_gradient_LE = aux.gradient_LE.to(device_, at::kFloat, /*non_blocking=*/true).contiguous();
  const auto tokens = static_cast<double>(balance.tokens);
  balance.aux_loss_L = aux_loss_of_each_layer(sums).value_G;
  balance.z_loss_L = sums.logsumexp_square_L / tokens;
  balance.confidence_L = sums.confidence_L / tokens;
  balance.z_loss = balance.z_loss_L.mean().item<double>();
  balance.z_gradient = 1.0 / (static_cast<double>(layers_) * tokens);
  return balance;
}

}  // namespace conclave
