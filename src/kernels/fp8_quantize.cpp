#include "kernels/fp8_quantize.h"

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {
namespace {

void check_format(const char* op, at::ScalarType format) {
  check_invariant(format == at::kFloat8_e4m3fn || format == at::kFloat8_e5m2, "{}: {} is no format of fp8", op,
                  c10::toString(format));
}

}  // namespace

Fp8Matrix quantize_rows(const at::Tensor& x_RM, at::ScalarType format) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "quantize_rows";
  check_dims(op, "x", x_RM, 2);
  check_format(op, format);
  return kernels_of(x_RM).quantize_rows(x_RM, format);
}

Fp8Matrix quantize_columns(const at::Tensor& x_RM, at::ScalarType format) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "quantize_columns";
  check_dims(op, "x", x_RM, 2);
  check_format(op, format);
  return kernels_of(x_RM).quantize_columns(x_RM, format);
}

Fp8Matrix quantize_weight(const at::Tensor& w_NM) {
  const KernelScope timed(Phase::kernels);
  check_dims("quantize_weight", "w", w_NM, 2);
  return kernels_of(w_NM).quantize_weight(w_NM, /*transposed=*/false);
}

Fp8Matrix quantize_transposed_weight(const at::Tensor& w_NM) {
  const KernelScope timed(Phase::kernels);
  check_dims("quantize_transposed_weight", "w", w_NM, 2);
  return kernels_of(w_NM).quantize_weight(w_NM, /*transposed=*/true);
}

}  // namespace conclave
