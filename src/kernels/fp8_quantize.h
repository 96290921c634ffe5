// Matrices in fp8 with a scale for each block, as products take them (fp8_product.h): the fine-grained scaling of
// DeepSeek-V3 (arXiv 2412.19437, section 3.3.2). Activations and gradients have one scale for 128 elements of a row,
// along the dim that a product sums over; weights one for a square of 128 x 128, so that a weight and its transpose
// hold the same values.
//
// What is stored is x / scale, rounded to nearest even. The scale is the least power of two for which that does not
// exceed the largest number of the format (448 in e4m3, 57344 in e5m2): dividing by it rounds nothing, so a matrix that
// is blocked along its rows for one product and along its columns for another errs in each by one rounding only, and
// nothing ever saturates. amax / 448 itself would use the range better by less than one bit and the mantissa not at
// all. A block of zeros has scale 1. A block with a value that is not finite is not-a-number as a whole: so are then
// the sums it goes into, and the step is skipped as it is without fp8.
#pragma once

#include <ATen/core/Tensor.h>

#include "base/cuda_rules.h"

namespace conclave {

enum class Fp8Blocks { rows, squares };  // 1 x fp8_block, fp8_block x fp8_block

// Blocks at an edge may be partial. The layouts of scales are cuBLAS's.
struct Fp8Matrix {
  at::Tensor value_XS;  // e4m3 or e5m2; products sum over S
  at::Tensor scale;     // fp32. rows: [blocks of S, X]; squares: [blocks of X, blocks of S up to a multiple of 4]
  Fp8Blocks blocks = Fp8Blocks::rows;
};

// x [R,M], fp32 or bf16. A product wants whole 16 bytes in every direction, so rows of zeros come behind the last one:
// value [R up to a multiple of 16, M].
Fp8Matrix quantize_rows(const at::Tensor& x_RM, at::ScalarType format);

// The transpose, for a sum over rows: value [M, R up to a multiple of 128].
Fp8Matrix quantize_columns(const at::Tensor& x_RM, at::ScalarType format);

// A weight in e4m3, and its transpose.
Fp8Matrix quantize_weight(const at::Tensor& w_NM);
Fp8Matrix quantize_transposed_weight(const at::Tensor& w_NM);

// What the stored values stand for: fp32 [X,S].
at::Tensor dequantize(const Fp8Matrix& matrix);

namespace reference {
Fp8Matrix quantize_rows(const at::Tensor& x_RM, at::ScalarType format);
Fp8Matrix quantize_columns(const at::Tensor& x_RM, at::ScalarType format);
Fp8Matrix quantize_weight(const at::Tensor& w_NM);
Fp8Matrix quantize_transposed_weight(const at::Tensor& w_NM);
}  // namespace reference

}  // namespace conclave
