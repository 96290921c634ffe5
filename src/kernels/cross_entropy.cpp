#include "kernels/cross_entropy.h"

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"
#include "kernels/values.h"

namespace conclave {

namespace {

void check_cross_entropy(const char* op, const at::Tensor& logits_CV, const at::Tensor& targets_C) {
  check_dims(op, "logits", logits_CV, 2);
  check_invariant(logits_CV.size(1) > 0, "{}: empty vocabulary", op);
  check_tensor(op, "targets", targets_C, {logits_CV.size(0)}, at::kLong);
}

}  // namespace

at::Tensor cross_entropy_sum(const at::Tensor& logits_CV, const at::Tensor& targets_C) {
  const KernelScope timed(Phase::kernels);
  check_cross_entropy("cross_entropy", logits_CV, targets_C);
  return kernels_of(logits_CV).cross_entropy(logits_CV, targets_C);
}

at::Tensor cross_entropy_sum_with_gradient_(at::Tensor logits_CV, const at::Tensor& targets_C, double scale) {
  const KernelScope timed(Phase::kernels);
  check_cross_entropy("cross_entropy_with_gradient_", logits_CV, targets_C);
  return kernels_of(logits_CV).cross_entropy_with_gradient_(logits_CV, targets_C, scale);
}

double cross_entropy(const at::Tensor& logits_CV, const at::Tensor& targets_C) {
  return value_of(cross_entropy_sum(logits_CV, targets_C));
}

double cross_entropy_with_gradient_(at::Tensor logits_CV, const at::Tensor& targets_C, double scale) {
  return value_of(cross_entropy_sum_with_gradient_(logits_CV, targets_C, scale));
}

}  // namespace conclave
