#include "kernels/fp8_product.h"

#include <ATen/ATen.h>

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {
void fp8_product(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate) {
  const KernelScope timed(Phase::products);
  constexpr auto op = "fp8_product";
  check_dims(op, "out", out_XY, 2);
  const at::Tensor &a_XS = a.value_XS, &b_YS = b.value_XS;
  check_invariant(a_XS.size(0) >= out_XY.size(0) && b_YS.size(0) == out_XY.size(1) && a_XS.size(1) == b_YS.size(1),
                  "{}: out is {}x{}, a {}x{}, b {}x{}", op, out_XY.size(0), out_XY.size(1), a_XS.size(0), a_XS.size(1),
                  b_YS.size(0), b_YS.size(1));
  check_invariant(a.blocks == Fp8Blocks::rows || b.blocks == Fp8Blocks::rows, "{}: both are in squares", op);
  check_invariant(a_XS.scalar_type() == at::kFloat8_e4m3fn || b_YS.scalar_type() == at::kFloat8_e4m3fn,
                  "{}: neither is in e4m3", op);
  if (out_XY.numel() == 0) return;
  if (a_XS.size(1) == 0) {
    if (!accumulate) out_XY.zero_();
    return;
  }
  kernels_of(out_XY).fp8_product(out_XY, a, b, accumulate);
}

void reference::fp8_product(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate) {
  const at::Tensor product = at::mm(dequantize(a).narrow(0, 0, out_XY.size(0)), dequantize(b).t());
  accumulate ? out_XY.add_(product) : out_XY.copy_(product);
}

}  // namespace conclave
