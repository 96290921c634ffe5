#include "kernels/product.h"

#include <ATen/ATen.h>

#include "kernels/blocked_product.h"

// Of ATen/native/mkldnn/Matmul.h, which PyTorch's packages leave out. result = alpha a b + beta result, in full fp32
// precision for fp32.
namespace at::native {
TORCH_API void mkldnn_matmul(const Tensor& a, const Tensor& b, const Tensor& result, float beta, float alpha);
}  // namespace at::native

namespace conclave {

void product(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  // A call of oneDNN takes 10 microseconds.
  constexpr int64_t least_multiplications = int64_t{1} << 19;
  if (out.is_cpu() && out.numel() * a.size(1) >= least_multiplications && cpu::multiplies_in_blocks(out.scalar_type()))
    return at::native::mkldnn_matmul(a, b, out, accumulate ? 1.0f : 0.0f, 1.0f);
  at::Tensor written = out;
  if (accumulate)
    at::addmm_out(written, written, a, b);
  else
    at::mm_out(written, a, b);
}

}  // namespace conclave
