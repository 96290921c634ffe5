// The balancing losses of one micro-step, over the tokens of all layers and, unless asked otherwise, of all ranks: a
// layout must not change the balancing strength.
//
// Aux loss as Transformers 5 computes it (after Fedus et al., "Switch Transformers", 2022, equations 4 to 6): aux = E *
// sum_e (count_e / N) (probability_e / N), where count_e is the number of choices that fell on expert e, probability_e
// the sum of its probabilities, both over all N = layers x tokens rows; one product for all layers together, so that
// layers may be uneven in opposite directions at no cost. Of each layer alone, the loss is the mean over the layers of
// each one's own. Uniform routing gives top_k either way. Over one rank's tokens (the scope that trainers which average
// the gradients of ranks have) the loss is the mean over the ranks of each one's own. z-loss (Zoph et al., "ST-MoE",
// 2022): the mean over the N rows of logsumexp(logits)^2.
#pragma once

#include <vector>

#include "comm/communicator.h"
#include "config/moe_section.h"
#include "kernels/router.h"

namespace conclave {

// Whose tokens, and which layers' rows, the product of the auxiliary loss is taken over.
struct AuxLossOptions {
  AuxLossScope scope = AuxLossScope::all_ranks;
  AuxLossLayers layers = AuxLossLayers::together;
};

// The statistics of all ranks, and what follows from them. Tensors are undefined where a model has no experts.
struct Balance {
  at::Tensor count_LE;         // double, CPU: choices that fell on each expert, by layer
  at::Tensor own_count_LE;     // the same of this rank's tokens alone, where the collective ran
  int64_t tokens = 0;          // of all ranks in this micro-step
  double aux_loss = 0;         // without its coefficient
  double z_loss = 0;           // without its coefficient
  at::Tensor aux_gradient_LE;  // fp32: d aux_loss / d probability[l,t,e], the same for every token here
  double z_gradient = 0;       // d z_loss / d (logsumexp[t]^2)
  // To be looked at, layer by layer; double, CPU:
  at::Tensor aux_loss_L;    // the layer's alone, over all ranks
  at::Tensor z_loss_L;      // the layer's alone
  at::Tensor confidence_L;  // mean over the tokens of the highest probability: 1 / E to 1
};

// The sum over ranks in flight: start it after the last layer's forward, take it before the first layer's backward.
class BalanceReduction {
 public:
  // `layers`: this rank's statistics, layer by layer. `world` outlives the object. `device`: where the collective runs.
  BalanceReduction(Communicator& world, const std::vector<RoutingStatistics>& layers, int64_t tokens, at::Device device,
                   const AuxLossOptions& options = {});
  Balance finish();

 private:
  int64_t layers_;
  int64_t experts_;
  at::Device device_;
  AuxLossOptions options_;
  int ranks_;
  at::Tensor own_;   // double: what this rank adds to `sums`
  at::Tensor sums_;  // double: as balance_message.h says
  Pending pending_;
};

}  // namespace conclave
