// Balancing by optimal transport: the scores are scaled until every expert is in equal demand, then each token takes
// its k highest (Clark et al., "Unified Scaling Laws for Routed Language Models", arXiv 2202.01169, section 3.1.1; the
// same rule in Megatron-Core works on one rank's tokens, this one on the tokens of all ranks of a micro-step).
//
// Sinkhorn's iteration (Sinkhorn and Knopp, 1967): with u_e = 1 at first, p_te = min(1, c_t s_te u_e), where c_t makes
// sum_e p_te = K; d_e = sum_t p_te; u_e *= (T K / E) / d_e, until every |d_e E / (T K) - 1| <= tolerance. A token takes
// K experts, each once, and that is what it demands; with the paper's K = 1 the 1 never binds. Demands of 1 in all, as
// if each token took one expert, can be even while the K highest are not. The demands d are summed over all ranks in
// fixed point, whose sums do not depend on their order: choices are the same on every layout.
#pragma once

#include "moe/expert_selection.h"

namespace conclave {

struct SinkhornOptions {
  double tolerance = 1e-2;  // of the demand of an expert, relative to the mean
  int64_t iterations = 50;  // at most, each with one all-reduce of E + 1 numbers over the world
};

class SinkhornSelection final : public ExpertSelection {
 public:
  // `world` outlives the selection.
  SinkhornSelection(const RouterOptions& options, const SinkhornOptions& sinkhorn, Communicator& world)
      : ExpertSelection(options), sinkhorn_(sinkhorn), world_(world) {}
  Routing route_in_training(int64_t layer, const at::Tensor& logits_TE, const TokenNumbers& tokens) override;

 private:
  SinkhornOptions sinkhorn_;
  Communicator& world_;
};

// The scale u [E] double of the last iteration. logits [T,E] of this rank; collective over `world`.
at::Tensor sinkhorn_scale(const at::Tensor& logits_TE, int64_t top_k, const SinkhornOptions& options,
                          Communicator& world);

}  // namespace conclave
