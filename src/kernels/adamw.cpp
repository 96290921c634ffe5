#include "kernels/adamw.h"

#include "kernels/check.h"
#include "kernels/kernels.h"
#include "kernels/values.h"

namespace conclave {

void adamw_step(at::Tensor parameter, at::Tensor exp_avg, at::Tensor exp_avg_sq, const at::Tensor& grad,
                const AdamwStep& step) {
  constexpr auto op = "adamw_step";
  check_dims(op, "parameter", parameter, 1);
  check_invariant(step.step >= 1, "{}: step {} is not 1-based", op, step.step);
  const at::ScalarType dtype = wide_dtype(parameter.scalar_type());
  check_tensor(op, "parameter", parameter, parameter.sizes(), dtype);
  check_tensor(op, "exp_avg", exp_avg, parameter.sizes(), dtype);
  check_tensor(op, "exp_avg_sq", exp_avg_sq, parameter.sizes(), dtype);
  check_tensor(op, "grad", grad, parameter.sizes(), dtype);
  kernels_of(parameter).adamw_step(parameter, exp_avg, exp_avg_sq, grad, step);
}

at::Tensor sum_of_squares_tensor(const at::Tensor& x) {
  check_dims("sum_of_squares", "x", x, 1);
  check_tensor("sum_of_squares", "x", x, x.sizes(), wide_dtype(x.scalar_type()));
  return kernels_of(x).sum_of_squares(x);
}

double sum_of_squares(const at::Tensor& x) {
  return value_of(sum_of_squares_tensor(x));
}

}  // namespace conclave
