// Some of the device's products are a library's: here the references stand for them, and for what they demand.
#include "cuda/library_products.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "cuda/two_streams.h"
#include "kernels/fp8_product.h"

namespace conclave {
namespace {

bool at_whole_16_bytes(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0;
}

// What cuBLAS's manual demands of an operand and of the layout of its scales.
void check_operand(const Fp8Matrix& matrix) {
  const int64_t rows = matrix.value_XS.size(0), sum = matrix.value_XS.size(1);
  const int64_t blocks = (sum + fp8_block - 1) / fp8_block;
  check_invariant(at_whole_16_bytes(matrix.value_XS) && at_whole_16_bytes(matrix.scale), "an operand is not aligned");
  check_invariant(matrix.value_XS.is_contiguous() && matrix.scale.is_contiguous(), "an operand is not contiguous");
  check_invariant(rows % 4 == 0 && sum % 16 == 0, "an operand of {} rows of {}", rows, sum);
  const bool by_rows = matrix.blocks == Fp8Blocks::rows;
  const std::vector<int64_t> expected =
      by_rows ? std::vector<int64_t>{blocks, rows}
              : std::vector<int64_t>{(rows + fp8_block - 1) / fp8_block, (blocks + 3) / 4 * 4};
  check_invariant(matrix.scale.sizes().vec() == expected, "{} x {} scales for {} rows of {}", matrix.scale.size(0),
                  matrix.scale.size(1), rows, sum);
}

}  // namespace

void cuda::fp8_product(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate) {
  check_invariant(out_XY.size(0) == a.value_XS.size(0), "{} rows of {}", out_XY.size(0), a.value_XS.size(0));
  check_invariant(at_whole_16_bytes(out_XY) && out_XY.is_contiguous(), "the product is not aligned or not contiguous");
  check_operand(a);
  check_operand(b);
  reference::fp8_product(out_XY, a, b, accumulate);
}

void cuda::weight_gradient(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM, bool accumulate) {
  check_invariant(grad_w_NM.stride(1) == 1 && grad_y_RN.stride(1) == 1 && x_RM.stride(1) == 1, "rows lie apart");
  if (!accumulate) grad_w_NM.zero_();
  // Row after row, without temporaries: the device's product has none that a plan counts.
  for (int64_t r = 0; r < x_RM.size(0); ++r) {
    const auto* grad_y = grad_y_RN.const_data_ptr<at::BFloat16>() + r * grad_y_RN.stride(0);
    const auto* x = x_RM.const_data_ptr<at::BFloat16>() + r * x_RM.stride(0);
    for (int64_t n = 0; n < grad_w_NM.size(0); ++n) {
      float* grad_w = grad_w_NM.data_ptr<float>() + n * grad_w_NM.stride(0);
      const float factor = grad_y[n];
      for (int64_t m = 0; m < grad_w_NM.size(1); ++m) grad_w[m] += factor * static_cast<float>(x[m]);
    }
  }
}

// One after the other, from the last one on: where the order matters, a result differs.
void cuda::on_two_streams(int64_t count, const std::function<void(int64_t)>& f) {
  for (int64_t i = count - 1; i >= 0; --i) f(i);
}

}  // namespace conclave
