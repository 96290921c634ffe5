// How the tokens of a step, all ranks' together, were spread over the experts of each layer.
#pragma once

#include "moe/balancing.h"

namespace conclave {

class LoadStatistics {
 public:
  // Micro-steps of one step, which have equally many tokens.
  void add(const Balance& micro_step);

  // Of a model without experts there is nothing to say.
  bool is_empty() const { return micro_steps_ == 0; }

  // Choices that fell on each expert, double [L,E], CPU.
  const at::Tensor& count_LE() const { return count_LE_; }

  // All double, CPU:
  at::Tensor share_LE() const;      // an expert's part of its layer's choices; 1 / E is fair
  at::Tensor imbalance_L() const;   // max / mean of an expert's choices: 1 is even, E / K the most there can be
  at::Tensor entropy_L() const;     // - sum_e share log share / log E: 1 is even, 0 all to one expert
  at::Tensor aux_loss_L() const;    // of each layer alone, whatever the rule; K is even
  at::Tensor z_loss_L() const;      // of each layer alone
  at::Tensor confidence_L() const;  // mean over the tokens of the router's highest probability: 1 / E to 1
  double imbalance() const { return imbalance_L().mean().item<double>(); }

 private:
  int64_t micro_steps_ = 0;
  at::Tensor count_LE_;
  at::Tensor aux_loss_L_, z_loss_L_, confidence_L_;  // sums over the micro-steps
};

}  // namespace conclave
