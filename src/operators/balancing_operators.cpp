// torch.ops.conclave.balancing_losses, routing_statistics and load_statistics: the losses that balance experts, over
// the tokens of all ranks, and how evenly the tokens fell.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "moe/load_statistics.h"
#include "operators/plugin_kernels.h"
#include "operators/process_group_communicator.h"

namespace conclave {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

RouterOptions options_of(const at::Tensor& choice_TK) {
  RouterOptions options;
  options.top_k = choice_TK.size(-1);
  return options;
}

Routing routing_of(const at::Tensor& logits_TE, const at::Tensor& choice_TK) {
  return route_to(logits_TE, options_of(choice_TK), choice_TK);
}

struct Losses {
  Balance balance;
  int64_t ranks = 1;
};

Losses losses_of(const at::Tensor& logits_LTE, const at::Tensor& choice_LTK, const std::string& group,
                 const AuxLossOptions& options) {
  const auto world = communicator_of("world", group, logits_LTE.device());
  std::vector<RoutingStatistics> layers;
  for (int64_t layer = 0; layer < logits_LTE.size(0); ++layer)
    layers.push_back(routing_statistics(routing_of(logits_LTE[layer], choice_LTK[layer]), options_of(choice_LTK)));
  return {BalanceReduction(*world, layers, logits_LTE.size(1), logits_LTE.device(), options).finish(), world->size()};
}

// The gradients of a script are means over the ranks, and each rank knows of its own tokens only: here a rank's part of
// the gradient is taken times the ranks.
class BalancingLosses : public torch::autograd::Function<BalancingLosses> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& logits_LTE, const at::Tensor& choice,
                            const std::string& group, bool all_ranks, bool each_layer) {
    const OperatorDevice device(logits_LTE);
    const at::Tensor logits = logits_LTE.contiguous(), choice_LTK = choice.to(at::kInt).contiguous();
    const Losses losses = losses_of(logits, choice_LTK, group,
                                    {all_ranks ? AuxLossScope::all_ranks : AuxLossScope::each_rank,
                                     each_layer ? AuxLossLayers::each : AuxLossLayers::together});
    context->save_for_backward({logits, choice_LTK, losses.balance.aux_gradient_LE});
    context->saved_data["z_gradient"] = losses.balance.z_gradient;
    context->saved_data["ranks"] = losses.ranks;
    return at::tensor({losses.balance.aux_loss, losses.balance.z_loss}, logits.options().dtype(at::kFloat));
  }

  static variable_list backward(AutogradContext* context, variable_list grad) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &logits_LTE = saved[0], &choice_LTK = saved[1], &aux_gradient_LE = saved[2];
    const OperatorDevice device(logits_LTE);
    const at::Tensor factor = grad[0].to(at::kCPU, at::kDouble) * context->saved_data["ranks"].toInt();
    const double z_coefficient = context->saved_data["z_gradient"].toDouble() * factor[1].item<double>();
    at::Tensor grad_logits_LTE = at::empty_like(logits_LTE);
    const at::Tensor no_weight = at::zeros(choice_LTK[0].sizes(), logits_LTE.options().dtype(at::kFloat));
    for (int64_t layer = 0; layer < logits_LTE.size(0); ++layer)
      route_backward(grad_logits_LTE[layer], routing_of(logits_LTE[layer], choice_LTK[layer]), options_of(choice_LTK),
                     no_weight, aux_gradient_LE[layer].mul(factor[0].item<double>()).contiguous(), z_coefficient);
    return {grad_logits_LTE, {}, {}, {}, {}};
  }
};

// logits [L,T,E] of this rank's tokens, choice [L,T,K] -> [auxiliary loss, z-loss], without coefficients, the same on
// all ranks. Collective over the group, also with no token.
// NOLINTBEGIN(performance-unnecessary-value-param): PyTorch hands strings by value
at::Tensor balancing_losses(const at::Tensor& logits, const at::Tensor& choice, std::string group, bool all_ranks,
                            bool each_layer) {
  return BalancingLosses::apply(logits, choice, group, all_ranks, each_layer);
}

// Of one layer's tokens, double [2 E + 2]: choices by expert, probabilities by expert, the sum of logsumexp^2, the sum
// of each token's highest probability.
at::Tensor routing_statistics_of(const at::Tensor& logits, const at::Tensor& choice) {
  const OperatorDevice device(logits);
  const at::Tensor choice_TK = choice.to(at::kInt).contiguous();
  const RoutingStatistics sums =
      routing_statistics(routing_of(logits.detach().contiguous(), choice_TK), options_of(choice_TK));
  return at::cat(
      {sums.count_E, sums.probability_sum_E, sums.logsumexp_square_sum.reshape({1}), sums.confidence_sum.reshape({1})});
}

// `sums` [L,2 E + 2] of this rank's `tokens`, as above -> what is told of all ranks' tokens, double, on the CPU:
// choices [L,E], shares [L,E], imbalance [L], entropy [L], auxiliary loss [L], z-loss [L], confidence [L]. Nothing when
// there were no tokens. Collective over the group.
std::vector<at::Tensor> load_statistics(const at::Tensor& sums, int64_t tokens, std::string group) {
  const OperatorDevice device(sums);
  const auto world = communicator_of("world", group, sums.device());
  at::Tensor all = at::full({1}, tokens, sums.options().dtype(at::kLong));
  world->all_reduce(all, Reduction::sum).wait();
  if (all.item<int64_t>() == 0) return {};
  const int64_t experts = (sums.size(1) - 2) / 2;
  std::vector<RoutingStatistics> layers;
  for (int64_t layer = 0; layer < sums.size(0); ++layer)
    layers.push_back({sums[layer].narrow(0, 0, experts), sums[layer].narrow(0, experts, experts),
                      sums[layer][2 * experts], sums[layer][2 * experts + 1]});
  LoadStatistics load;
  load.add(BalanceReduction(*world, layers, tokens, sums.device()).finish());
  return {load.count_LE(),   load.share_LE(), load.imbalance_L(), load.entropy_L(),
          load.aux_loss_L(), load.z_loss_L(), load.confidence_L()};
}
// NOLINTEND(performance-unnecessary-value-param)

}  // namespace

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.def("balancing_losses(Tensor logits, Tensor choice, str group, bool all_ranks, bool each_layer) -> Tensor");
  library.def("routing_statistics(Tensor logits, Tensor choice) -> Tensor");
  library.def("load_statistics(Tensor sums, int tokens, str group) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(conclave, CompositeImplicitAutograd, library) {
  library.impl("balancing_losses", balancing_losses);
}

TORCH_LIBRARY_IMPL(conclave, CompositeExplicitAutograd, library) {
  library.impl("routing_statistics", routing_statistics_of);
  library.impl("load_statistics", load_statistics);
}

}  // namespace conclave
