// Matrix products of cuBLASLt that ATen does not offer. Arguments as in kernels/fp8_product.h and kernels/linear.h,
// already checked.
#pragma once

#include "kernels/fp8_quantize.h"

namespace conclave::cuda {

// Sizes are multiples of 16.
void fp8_product(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate);

// grad_w = or += grad_y^T x of bf16, in fp32, never rounded on the way.
void weight_gradient(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM, bool accumulate);

}  // namespace conclave::cuda
