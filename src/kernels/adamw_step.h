// The numbers of a step of AdamW, and as its elements need them. Plain C++, so that device code may include it.
#pragma once

#include <cmath>
#include <cstdint>

namespace conclave {

struct AdamwStep {
  double lr = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  int64_t step = 1;       // 1-based: bias correction 1 - beta^step
  double grad_scale = 1;  // the gradient is multiplied by this first (clipping)
};

// Computed once in double, rounded once.
struct AdamwFactors {
  float grad_scale;
  float keep;  // 1 - lr * weight_decay
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float root_correction2;  // sqrt(1 - beta2^step)
  float eps;
  float step_size;  // lr / (1 - beta1^step)
};

inline AdamwFactors factors_of(const AdamwStep& step) {
  const auto steps = static_cast<double>(step.step);
  return {
      .grad_scale = static_cast<float>(step.grad_scale),
      .keep = static_cast<float>(1 - step.lr * step.weight_decay),
      .one_minus_beta1 = static_cast<float>(1 - step.beta1),
      .beta2 = static_cast<float>(step.beta2),
      .one_minus_beta2 = static_cast<float>(1 - step.beta2),
      .root_correction2 = static_cast<float>(std::sqrt(1 - std::pow(step.beta2, steps))),
      .eps = static_cast<float>(step.eps),
      .step_size = static_cast<float>(step.lr / (1 - std::pow(step.beta1, steps))),
  };
}

}  // namespace conclave
