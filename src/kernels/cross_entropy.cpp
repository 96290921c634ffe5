#include "kernels/cross_entropy.h"

#include <ATen/ops/scalar_tensor.h>

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/cpu.h"
#include "kernels/cuda_kernels.h"

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
  if (const CudaKernels* cuda = cuda_kernels(logits_CV)) return cuda->cross_entropy(logits_CV, targets_C);
  const auto compute = has_cpu_path(logits_CV) ? cpu::cross_entropy : reference::cross_entropy;
  return at::scalar_tensor(compute(logits_CV, targets_C), at::kDouble);
}

at::Tensor cross_entropy_sum_with_gradient_(at::Tensor logits_CV, const at::Tensor& targets_C, double scale) {
  const KernelScope timed(Phase::kernels);
  check_cross_entropy("cross_entropy_with_gradient_", logits_CV, targets_C);
  if (const CudaKernels* cuda = cuda_kernels(logits_CV))
    return cuda->cross_entropy_with_gradient_(logits_CV, targets_C, scale);
  const auto compute =
      has_cpu_path(logits_CV) ? cpu::cross_entropy_with_gradient_ : reference::cross_entropy_with_gradient_;
  return at::scalar_tensor(compute(logits_CV, targets_C, scale), at::kDouble);
}

double cross_entropy(const at::Tensor& logits_CV, const at::Tensor& targets_C) {
  return cross_entropy_sum(logits_CV, targets_C).item<double>();
}

double cross_entropy_with_gradient_(at::Tensor logits_CV, const at::Tensor& targets_C, double scale) {
  return cross_entropy_sum_with_gradient_(logits_CV, targets_C, scale).item<double>();
}

}  // namespace conclave
