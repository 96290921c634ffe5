#include <ATen/ATen.h>

#include "kernels/bias.h"
#include "kernels/check.h"

namespace conclave::reference {
namespace {

// int64 [R]: the bias of each row.
at::Tensor bias_of_row(int64_t rows, const at::Tensor& ends_L) {
  const at::Tensor row_R = at::arange(rows, at::kInt);
  if (!ends_L.defined()) return at::zeros_like(row_R, at::kLong);
  return at::searchsorted(ends_L, row_R, /*out_int32=*/false, /*right=*/true);
}

// As the rows' dtype holds it, for sums.
at::Tensor rounded(const at::Tensor& bias_LN, at::ScalarType rows) {
  return bias_LN.to(rows).to(wide_dtype(rows));
}

}  // namespace

void add_bias(const at::Tensor& y_RN, const at::Tensor& bias_LN, const at::Tensor& scale_R, const at::Tensor& ends_L) {
  const at::ScalarType dtype = y_RN.scalar_type();
  at::Tensor bias_RN = rounded(bias_LN, dtype).index_select(0, bias_of_row(y_RN.size(0), ends_L));
  if (scale_R.defined()) bias_RN = bias_RN * scale_R.unsqueeze(1);
  y_RN.copy_(y_RN.to(wide_dtype(dtype)) + bias_RN);
}

void bias_backward(const at::Tensor& grad_bias_LN, const at::Tensor& grad_y_RN, bool accumulate,
                   const at::Tensor& scale_R, const at::Tensor& ends_L) {
  at::Tensor grad_RN = grad_y_RN.to(wide_dtype(grad_y_RN.scalar_type()));
  if (scale_R.defined()) grad_RN = grad_RN * scale_R.unsqueeze(1);
  if (!accumulate) grad_bias_LN.zero_();
  at::Tensor written = grad_bias_LN;
  written.index_add_(0, bias_of_row(grad_y_RN.size(0), ends_L), grad_RN);
}

void bias_scale_backward_add(const at::Tensor& grad_scale_R, const at::Tensor& grad_y_RN, const at::Tensor& bias_LN,
                             const at::Tensor& ends_L) {
  const at::ScalarType dtype = grad_y_RN.scalar_type();
  const at::Tensor bias_RN = rounded(bias_LN, dtype).index_select(0, bias_of_row(grad_y_RN.size(0), ends_L));
  grad_scale_R.add_((grad_y_RN.to(wide_dtype(dtype)) * bias_RN).sum(1));
}

}  // namespace conclave::reference
