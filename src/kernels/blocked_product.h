// Matrix products in blocks that stay in the caches, multiplied by oneDNN's micro-kernels (ATen/native/CPUBlas.h,
// brgemm). Beside a call of a whole product of a library (product.h) this needs no new kernel for each number of rows,
// which change with every routing and cost half a millisecond each; bf16 is summed into fp32 unrounded; and the order
// of a sum follows from the shapes alone, whatever the number of threads.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave::cpu {

// Whether this machine has what it takes for operands of this dtype: AVX512 for fp32; AVX512-bf16 or AMX for bf16.
bool multiplies_in_blocks(at::ScalarType dtype);

// out [R,N] = a [R,M] b [M,N], or out += a b with `accumulate`. a and b both fp32 or both bf16, or a bf16 and b fp32,
// which is rounded to bf16 as it is read; each with contiguous rows, or contiguous columns (a transposed matrix). out
// has contiguous rows and is fp32, or bf16 where a is bf16 with contiguous rows: then it is rounded once.
void blocked_product(at::Tensor out, const at::Tensor& a, const at::Tensor& b, bool accumulate);

}  // namespace conclave::cpu
