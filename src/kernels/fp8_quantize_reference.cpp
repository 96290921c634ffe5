#include <ATen/ATen.h>

#include <limits>

#include "kernels/fp8_quantize.h"

namespace conclave {
namespace {

int64_t up_to_multiple(int64_t count, int64_t of) {
  return (count + of - 1) / of * of;
}

int64_t blocks_of(int64_t count) {
  return up_to_multiple(count, fp8_block) / fp8_block;
}

// fp32 [rows, columns] with zeros behind x.
at::Tensor padded(const at::Tensor& x, int64_t rows, int64_t columns) {
  return at::constant_pad_nd(x.to(at::kFloat), {0, columns - x.size(1), 0, rows - x.size(0)});
}

// From the largest magnitudes of blocks. 448 and 57344 are 7/8 of a power of two: 2^9, 2^16.
at::Tensor scale_of(const at::Tensor& amax, at::ScalarType format) {
  constexpr int fp32_bias = 127, fp32_mantissa_bits = 23;
  const auto [mantissa, exponent] = at::frexp(amax);  // mantissa in [1/2, 1)
  const at::Tensor power = exponent - (format == at::kFloat8_e4m3fn ? 9 : 16) + mantissa.gt(0.875).to(at::kInt);
  const at::Tensor normal = power.clamp_min(1 - fp32_bias);
  const at::Tensor scale = (normal + fp32_bias).bitwise_left_shift(fp32_mantissa_bits).view(at::kFloat);
  return at::where(amax.isfinite(), at::where(amax.eq(0), 1.0f, scale), std::numeric_limits<float>::quiet_NaN());
}

at::Tensor divided(const at::Tensor& x, const at::Tensor& scale, at::ScalarType format) {
  const at::Tensor quotient = at::where(scale.isnan(), std::numeric_limits<float>::quiet_NaN(), x / scale);
  return quotient.to(format);
}

// Of x [X,S], whose rows are as many as they shall be.
Fp8Matrix quantize(const at::Tensor& x_XS, at::ScalarType format) {
  const int64_t rows = x_XS.size(0), columns = x_XS.size(1), blocks = blocks_of(columns);
  const at::Tensor x = padded(x_XS, rows, blocks * fp8_block).view({rows, blocks, fp8_block});
  const at::Tensor scale = scale_of(x.abs().amax(2), format);
  const at::Tensor value = divided(x, scale.unsqueeze(2), format).view({rows, blocks * fp8_block});
  return {value.narrow(1, 0, columns).contiguous(), scale.t().contiguous(), Fp8Blocks::rows};
}

// Scales lie in rows of whole 16 bytes.
at::Tensor in_wide_rows(const at::Tensor& scale) {
  at::Tensor wide = at::ones({scale.size(0), up_to_multiple(scale.size(1), 4)}, scale.options());
  wide.narrow(1, 0, scale.size(1)).copy_(scale);
  return wide;
}

struct Squares {
  at::Tensor value_NM, scale;
};

Squares squares_of(const at::Tensor& w_NM) {
  const int64_t rows = w_NM.size(0), columns = w_NM.size(1), down = blocks_of(rows), across = blocks_of(columns);
  const at::Tensor w = padded(w_NM, down * fp8_block, across * fp8_block).view({down, fp8_block, across, fp8_block});
  const at::Tensor scale = scale_of(w.abs().amax({1, 3}), at::kFloat8_e4m3fn);
  const at::Tensor value = divided(w, scale.view({down, 1, across, 1}), at::kFloat8_e4m3fn);
  return {value.view({down * fp8_block, across * fp8_block}).narrow(0, 0, rows).narrow(1, 0, columns), scale};
}

}  // namespace

at::Tensor dequantize(const Fp8Matrix& matrix) {
  const int64_t rows = matrix.value_XS.size(0), columns = matrix.value_XS.size(1);
  at::Tensor scale = matrix.scale;
  if (matrix.blocks == Fp8Blocks::rows)
    scale = scale.t();
  else
    scale = scale.repeat_interleave(fp8_block, 0).narrow(0, 0, rows);
  return matrix.value_XS.to(at::kFloat) * scale.repeat_interleave(fp8_block, 1).narrow(1, 0, columns);
}

Fp8Matrix reference::quantize_rows(const at::Tensor& x_RM, at::ScalarType format) {
  return quantize(padded(x_RM, up_to_multiple(x_RM.size(0), 16), x_RM.size(1)), format);
}

Fp8Matrix reference::quantize_columns(const at::Tensor& x_RM, at::ScalarType format) {
  const int64_t rows = up_to_multiple(x_RM.size(0), fp8_block);
  return quantize(padded(x_RM, rows, x_RM.size(1)).t(), format);
}

Fp8Matrix reference::quantize_weight(const at::Tensor& w_NM) {
  const Squares squares = squares_of(w_NM);
  return {squares.value_NM.contiguous(), in_wide_rows(squares.scale), Fp8Blocks::squares};
}

Fp8Matrix reference::quantize_transposed_weight(const at::Tensor& w_NM) {
  const Squares squares = squares_of(w_NM);
  return {squares.value_NM.t().contiguous(), in_wide_rows(squares.scale.t()), Fp8Blocks::squares};
}

}  // namespace conclave
