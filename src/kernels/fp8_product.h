// The matrix product of two quantized matrices (fp8_quantize.h). Sums are fp32 over blocks that are multiplied by the
// product of their scales. On CUDA it is cuBLAS's, which has it on chips of compute capability 9.0 alone (H100, H200),
// for e4m3 with e4m3 or e5m2; everywhere else matrices are dequantized and multiplied in fp32, which is the reference.
#pragma once

#include "kernels/fp8_quantize.h"

namespace conclave {

// out [X,Y] = a [X,S] b [Y,S]^T, or out += with `accumulate`. out is fp32 or bf16, contiguous. Rows of `a` that `out`
// lacks are padding. Not both in squares, nor both in e5m2; X may be zero. On CUDA Y and S are multiples of 128.
void fp8_product(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate);

namespace reference {
void fp8_product(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate);
}  // namespace reference

}  // namespace conclave
