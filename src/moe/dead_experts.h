// Experts that have learned next to nothing for long: in each of the last 100 steps, all ranks' tokens together, such
// an expert got less than 1 % of the mean of its layer's experts. It is alive again with the first step that gives it
// more.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

class DeadExperts {
 public:
  static constexpr double share_of_mean = 0.01;
  static constexpr double steps = 100;

  DeadExperts(int64_t layers, int64_t experts);

  // A step that changed the weights: count [L,E] double, CPU, the choices that fell on each expert.
  void finish_step(const at::Tensor& count_LE);
  // How many of each layer's experts are dead: double [L], CPU.
  at::Tensor dead_L() const;

  // For checkpoints: for how many steps in a row each expert has got less; double [L,E], CPU.
  const at::Tensor& state_LE() const { return steps_LE_; }
  void restore(const at::Tensor& state_LE);

 private:
  at::Tensor steps_LE_;
};

}  // namespace conclave
