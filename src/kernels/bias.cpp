#include "kernels/bias.h"

#include <utility>

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {
namespace {

// Of the rows [R,N] and what goes with them; undefined: not there.
void check_scale(const char* op, const at::Tensor& row_RN, const at::Tensor& scale_R, int64_t biases,
                 const at::Tensor& ends_L) {
  if (scale_R.defined()) check_tensor(op, "scale", scale_R, {row_RN.size(0)}, wide_dtype(row_RN.scalar_type()));
  check_invariant(ends_L.defined() || biases == 1, "{}: nobody says where the rows of {} biases end", op, biases);
  if (ends_L.defined()) check_tensor(op, "ends", ends_L, {biases}, at::kInt);
}

void check_bias(const char* op, const at::Tensor& row_RN, const at::Tensor& bias_LN) {
  check_dims(op, "bias", bias_LN, 2);
  const at::ScalarType rows = row_RN.scalar_type(), bias = bias_LN.scalar_type();
  check_invariant(bias_LN.size(1) == row_RN.size(1), "{}: a bias of {} for rows of {}", op, bias_LN.size(1),
                  row_RN.size(1));
  check_invariant(bias == rows || (bias == at::kFloat && rows == at::kBFloat16), "{}: a bias of {} for rows of {}", op,
                  c10::toString(bias), c10::toString(rows));
}

}  // namespace

void add_bias(at::Tensor y_RN, const at::Tensor& bias_LN, const at::Tensor& scale_R, const at::Tensor& ends_L) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "add_bias";
  check_rows(op, "y", y_RN);
  check_bias(op, y_RN, bias_LN);
  check_scale(op, y_RN, scale_R, bias_LN.size(0), ends_L);
  kernels_of(y_RN).add_bias(y_RN, bias_LN, scale_R, ends_L);
}

void bias_backward(at::Tensor grad_bias_LN, const at::Tensor& grad_y_RN, bool accumulate, const at::Tensor& scale_R,
                   const at::Tensor& ends_L) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "bias_backward";
  check_dims(op, "grad_y", grad_y_RN, 2);
  check_dims(op, "grad_bias", grad_bias_LN, 2);
  check_tensor(op, "grad_bias", grad_bias_LN, {grad_bias_LN.size(0), grad_y_RN.size(1)},
               wide_dtype(grad_y_RN.scalar_type()));
  check_scale(op, grad_y_RN, scale_R, grad_bias_LN.size(0), ends_L);
  kernels_of(grad_y_RN).bias_backward(grad_bias_LN, grad_y_RN, accumulate, scale_R, ends_L);
}

void bias_scale_backward_add(at::Tensor grad_scale_R, const at::Tensor& grad_y_RN, const at::Tensor& bias_LN,
                             const at::Tensor& ends_L) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "bias_scale_backward_add";
  check_dims(op, "grad_y", grad_y_RN, 2);
  check_bias(op, grad_y_RN, bias_LN);
  check_scale(op, grad_y_RN, grad_scale_R, bias_LN.size(0), ends_L);
  kernels_of(grad_y_RN).bias_scale_backward_add(grad_scale_R, grad_y_RN, bias_LN, ends_L);
}

}  // namespace conclave
