// The balancing losses of one micro-step, over the tokens of all layers and, unless asked otherwise, of all ranks: a
// layout must not change the balancing strength.
//
// Aux loss as Transformers 5 computes it (after Fedus et al., "Switch Transformers", 2022, equations 4 to 6): aux = E *
// sum_e (count_e / N) (probability_e / N), where count_e is the number of choices that fell on expert e, probability_e
// the sum of its probabilities, both over all N = layers x tokens rows; one product for all layers together. Uniform
// routing gives top_k. Over one rank's tokens (the scope that trainers which average the gradients of ranks have) the
// loss is the mean over the ranks of each one's own. z-loss (Zoph et al., "ST-MoE", 2022): the mean over the N rows of
// logsumexp(logits)^2.
#pragma once

#include <vector>

#include "comm/communicator.h"
#include "kernels/router.h"

namespace conclave {

// Whose tokens the product of the auxiliary loss is taken over.
enum class AuxLossScope { all_ranks, each_rank };

// The statistics of all ranks, and what follows from them.
struct Balance {
  at::Tensor count_LE;        // double, CPU: choices that fell on each expert, by layer
  int64_t tokens = 0;         // of all ranks in this micro-step
  double aux_loss = 0;        // without its coefficient
  double z_loss = 0;          // without its coefficient
  at::Tensor aux_gradient_E;  // fp32: d aux_loss / d probability[t,e], the same for every token of every layer here
  double z_gradient = 0;      // d z_loss / d (logsumexp[t]^2)
};

// The sum over ranks in flight: start it after the last layer's forward, take it before the first layer's backward.
class BalanceReduction {
 public:
  // `layers`: this rank's statistics, layer by layer. `world` outlives the object. `device`: where the collective runs.
  BalanceReduction(Communicator& world, const std::vector<RoutingStatistics>& layers, int64_t tokens, at::Device device,
                   AuxLossScope scope = AuxLossScope::all_ranks);
  Balance finish();

 private:
  int64_t layers_;
  int64_t experts_;
  at::Device device_;
  AuxLossScope scope_;
  int ranks_;
  at::Tensor own_;  // double, CPU: what this rank adds to `sums`
  at::Tensor
      sums_;  // double: counts [L * E], probability sums over layers [E], this rank's aux loss, logsumexp^2, tokens
  Pending pending_;
};

// max / mean of the choices over the experts of a layer, averaged over layers: 1 is even. count [L,E].
double expert_imbalance(const at::Tensor& count_LE);

}  // namespace conclave
