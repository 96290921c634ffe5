// Upcycling (Komatsuzaki et al., "Sparse Upcycling", arXiv 2212.05055): a mixture that begins as a dense model. Every
// expert is a copy of its layer's MLP, the router is drawn as declared, all else is the dense model's. Because the
// weights of a token's experts sum to 1, the mixture then computes what the dense model does, whatever the router.
//
// Granular: where experts have fewer units than the dense MLP, each is a piece of it (run/dense_experts.h), and the
// pieces of a copy share a row of the router, so that a token chooses whole copies; K must hold whole copies. Then the
// mixture, too, computes what the dense model does, until its pieces learn apart. (After He et al., "Upcycling Large
// Language Models into Mixture of Experts", arXiv 2410.07524: virtual groups, and weights scaled for their number.)
//
// Copies that are alike learn alike. Two ways to tell them apart, alone or together:
// - noise: to every copied weight a normal number, its standard deviation `noise` times that of the dense matrix;
// - drop-upcycling (Nakamura et al., "Drop-Upcycling", arXiv 2502.19261): in each expert, a fraction of the
// intermediate
//   units is drawn anew: their rows of the gate and up projection and columns of the down projection, from a normal
//   distribution with mean and standard deviation of the dense matrix they lie in.
// All draws are functions of (seed, parameter, element), so that every layout starts from the same weights.
#pragma once

#include "comm/communicator.h"
#include "config/job.h"
#include "step/parallel_model.h"

namespace conclave {

// Collective. Fills the allocated parameters from the dense model in `source`. Every rank reads the ranges of it that
// it needs; with noise or fresh units also its part of every dense MLP, once, for mean and deviation. `host_world`: all
// ranks; takes CPU tensors.
void upcycle(ParallelModel& model, const ModelSource& source, uint64_t seed, Communicator& host_world);

}  // namespace conclave
