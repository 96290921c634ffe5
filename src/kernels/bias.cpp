#include "kernels/bias.h"

#include <ATen/ATen.h>

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {

void add_bias(at::Tensor out_RN, const at::Tensor& in_RN, const at::Tensor& bias_N) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "add_bias";
  check_rows(op, "out", out_RN);
  const int64_t rows = out_RN.size(0), columns = out_RN.size(1);
  if (in_RN.defined()) check_rows(op, "in", in_RN, rows, columns, out_RN.scalar_type());
  check_tensor(op, "bias", bias_N, {columns}, out_RN.scalar_type());
  kernels_of(out_RN).add_bias(out_RN, in_RN, bias_N);
}

void bias_gradient(at::Tensor grad_bias_N, const at::Tensor& grad_RN, bool accumulate) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "bias_gradient";
  check_rows(op, "grad", grad_RN);
  check_tensor(op, "grad_bias", grad_bias_N, {grad_RN.size(1)}, wide_dtype(grad_RN.scalar_type()));
  if (!accumulate) grad_bias_N.zero_();
  kernels_of(grad_RN).bias_gradient(grad_bias_N, grad_RN);
}

void reference::add_bias(at::Tensor out_RN, const at::Tensor& in_RN, const at::Tensor& bias_N) {
  in_RN.defined() ? out_RN.copy_(in_RN + bias_N) : out_RN.copy_(bias_N.expand_as(out_RN));
}

void reference::bias_gradient(at::Tensor grad_bias_N, const at::Tensor& grad_RN) {
  grad_bias_N.add_(grad_RN.to(wide_dtype(grad_RN.scalar_type())).sum(0));
}

}  // namespace conclave
