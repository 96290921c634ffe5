// The capacity of experts: what is more than an expert may take in a micro-step is dropped. A dropped choice makes no
// row; the token passes by on the residual stream, and the weights of its other choices stay as they are. (Lepikhin et
// al., "GShard", 2020; Fedus et al., "Switch Transformers", 2022.)
//
// Capacity of an expert = ceil(factor x T x K / E), T the tokens of ALL ranks in the micro-step, and who is kept is
// decided among all of them, so that the layout changes nothing. (Others count over the tokens of each rank.)
// Choices are ranked by the router's score, not by the weight: renormalized weights say how a token divides itself, and
// with top-1 they are all 1.
#pragma once

#include "comm/communicator.h"
#include "config/moe_section.h"
#include "kernels/router.h"
#include "moe/expert_selection.h"

namespace conclave {

struct CapacityOptions {
  double factor = 0;  // 0: no limit, no choice is dropped
  DropPolicy policy = DropPolicy::probability;
};

int64_t expert_capacity(double factor, int64_t tokens, int64_t top_k, int64_t experts);

// The share of a micro-step's choices that are dropped. count [L,E] double: the choices of all ranks' tokens.
double drop_rate(const at::Tensor& count_LE, int64_t capacity);

class ExpertCapacity {
 public:
  // `world` outlives it.
  ExpertCapacity(const CapacityOptions& options, Communicator& world) : options_(options), world_(world) {}

  // expert_of_choice [T,K] int32 with -1 for what is dropped. Collective over the world: one all-gather of E + 2
  // integers, and for probability four all-reduces of 256 E and an all-gather of E besides.
  at::Tensor apply(const Routing& routing, const TokenNumbers& tokens) const;

 private:
  CapacityOptions options_;
  Communicator& world_;
};

}  // namespace conclave
