// The head: final norm, vocabulary projection and cross-entropy, in chunks of tokens. A chunk's logits become its
// gradient where they lie, so [T,V] never exists, forward or backward.
#pragma once

#include <vector>

#include "base/gradient.h"
#include "config/model_config.h"

namespace conclave {

struct HeadWeights {
  at::Tensor norm_H;
  at::Tensor projection_VH;  // the embedding table when they are tied
};

struct HeadGradients {
  Gradient norm_H;
  Gradient projection_VH;
};

class MixtralHead {
 public:
  MixtralHead(const ModelConfig& config, int64_t chunk_tokens)
      : eps_(config.rms_norm_eps), chunk_tokens_(chunk_tokens) {}

  // Targets, and the rows at which the parts end whose losses are summed apart: ascending, the last is T.
  struct Targets {
    at::Tensor target_T;
    std::vector<int64_t> part_ends;
  };
  // Of each part the sum of the cross-entropies of its targets. hidden [T,H] becomes, in place, the gradient of scale x
  // the sum of all with respect to itself.
  std::vector<double> losses_with_gradient_(at::Tensor hidden_TH, const Targets& targets, double scale,
                                            const HeadWeights& weights, HeadGradients gradients) const;
  std::vector<double> losses(const at::Tensor& hidden_TH, const Targets& targets, const HeadWeights& weights) const;
  // All logits [T,V] in fp32: for tracing, not for training.
  at::Tensor logits(const at::Tensor& hidden_TH, const HeadWeights& weights) const;

 private:
  // The logits of normed rows, in the compute dtype.
  at::Tensor project(const at::Tensor& normed_CH, const at::Tensor& projection_VH) const;

  double eps_;
  int64_t chunk_tokens_;
};

}  // namespace conclave
