#include "kernels/product.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>

#include "kernels/cpu_features.h"

// Of ATen/native/mkldnn/Matmul.h, which PyTorch's packages leave out. result = alpha a b + beta result, in full fp32
// precision for fp32.
namespace at::native {
TORCH_API void mkldnn_matmul(const Tensor& a, const Tensor& b, const Tensor& result, float beta, float alpha);
}  // namespace at::native

namespace conclave {

bool multiplies_by_onednn(at::Device device, at::ScalarType dtype) {
  static const bool has_avx512 =
      at::hasMKLDNN() && cpu_has({"avx512_f", "avx512_bw", "avx512_dq", "avx512_vl"});  // what its kernels ask for
  static const bool has_bf16 = has_avx512 && (cpu_has({"avx512_bf16"}) || cpu_has({"amx_bf16"}));
  return device.is_cpu() && (dtype == at::kFloat ? has_avx512 : dtype == at::kBFloat16 && has_bf16);
}

void product(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  // A call of oneDNN takes about 10 microseconds.
  constexpr int64_t least_multiplications = int64_t{1} << 19;
  if (out.numel() * a.size(1) >= least_multiplications && multiplies_by_onednn(out.device(), out.scalar_type()))
    return at::native::mkldnn_matmul(a, b, out, accumulate ? 1.0f : 0.0f, 1.0f);
  at::Tensor written = out;
  if (accumulate)
    at::addmm_out(written, written, a, b);
  else
    at::mm_out(written, a, b);
}

}  // namespace conclave
