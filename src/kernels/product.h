// One matrix product by a library's own call, the fastest there is for it. On a CPU with AVX512 that is oneDNN, in fp32
// as in bf16: the MKL that ATen calls for fp32 does not use AVX512 on other makers' processors, and is half as fast
// there.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

// out [R,N] = a [R,M] b [M,N], or out += a b with `accumulate`. All of one dtype; last dims contiguous, or the first
// ones (a transposed matrix). In place, whatever the distance of out's rows; operands whose rows lie further apart than
// they are long may be copied first.
void product(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate);

}  // namespace conclave
