// The head: final norm, vocabulary projection and cross-entropy, in chunks of tokens. A chunk's logits become its
// gradient where they lie, so [T,V] never exists, forward or backward.
#pragma once

#include <vector>

#include "config/model_config.h"
#include "model/embedding.h"
#include "model/unit_tensors.h"

namespace conclave {

struct HeadWeights {
  at::Tensor norm_H;
  at::Tensor projection_VH;  // the embedding table when they are tied
};

struct HeadGradients {
  Gradient norm_H;
  Gradient projection_VH;
};

class Head {
 public:
  static void declare(const ModelConfig& config, UnitDeclaration& unit);
  // `embedding`: whose table a tied head projects with.
  Head(const ModelConfig& config, const UnitDeclaration& unit, const Embedding& embedding, int64_t chunk_tokens);

  // Its own among the tensors of its unit, and of the embedding's when they are tied.
  HeadWeights weights(const UnitWeights& head, const UnitWeights& embedding) const;
  HeadGradients gradients(UnitGradients head, UnitGradients embedding) const;

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

  ParameterSlot norm_H_;
  ParameterSlot projection_VH_;
  bool tied_;
  double eps_;
  int64_t chunk_tokens_;
};

}  // namespace conclave
