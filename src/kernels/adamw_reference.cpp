#include <ATen/ATen.h>

#include <cmath>

#include "kernels/adamw.h"

namespace conclave::reference {

void adamw_step(at::Tensor parameter, at::Tensor exp_avg, at::Tensor exp_avg_sq, const at::Tensor& grad,
                const AdamwStep& step) {
  const at::Tensor g = grad * step.grad_scale;
  parameter.mul_(1 - step.lr * step.weight_decay);
  exp_avg.lerp_(g, 1 - step.beta1);
  exp_avg_sq.mul_(step.beta2).addcmul_(g, g, 1 - step.beta2);
  const double correction1 = 1 - std::pow(step.beta1, step.step);
  const double correction2 = 1 - std::pow(step.beta2, step.step);
  const at::Tensor denominator = (exp_avg_sq.sqrt() / std::sqrt(correction2)).add_(step.eps);
  parameter.addcdiv_(exp_avg, denominator, -step.lr / correction1);
}

double sum_of_squares(const at::Tensor& x) {
  return x.to(at::kDouble).square().sum().item<double>();
}

}  // namespace conclave::reference
