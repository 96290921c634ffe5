#include <ATen/ATen.h>

#include "kernels/check.h"
#include "kernels/cross_entropy.h"

namespace conclave::reference {

namespace {

constexpr int64_t ignored_target = -100;

}  // namespace

double cross_entropy(const at::Tensor& logits_CV, const at::Tensor& targets_C) {
  const at::Tensor logits = logits_CV.to(wide_dtype(logits_CV.scalar_type()));
  const at::Tensor ignored = targets_C.eq(ignored_target);
  const at::Tensor target = targets_C.masked_fill(ignored, 0).unsqueeze(1);
  const at::Tensor loss = at::logsumexp(logits, {1}) - logits.gather(1, target).squeeze(1);
  return loss.masked_fill(ignored, 0).to(at::kDouble).sum().item<double>();
}

double cross_entropy_with_gradient_(at::Tensor logits_CV, const at::Tensor& targets_C, double scale) {
  const double loss = cross_entropy(logits_CV, targets_C);
  const at::Tensor ignored = targets_C.eq(ignored_target).unsqueeze(1);
  const at::Tensor target = targets_C.unsqueeze(1).masked_fill(ignored, 0);
  at::Tensor gradient = at::softmax(logits_CV.to(wide_dtype(logits_CV.scalar_type())), 1);
  gradient.scatter_add_(1, target, at::full_like(target, -1, gradient.options()));
  logits_CV.copy_((gradient * scale).masked_fill(ignored, 0));
  return loss;
}

}  // namespace conclave::reference
