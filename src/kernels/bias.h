// The bias of a linear layer. Rows may lie any distance apart; fp32 or bf16.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

// out [R,N] = in + bias [N], or the bias alone where in is undefined: products that add to it then save a pass of their
// own. out may be in.
void add_bias(at::Tensor out_RN, const at::Tensor& in_RN, const at::Tensor& bias_N);

// grad_bias [N] fp32 = the sum of the rows of grad [R,N], or += with `accumulate`, in an order that R alone fixes.
void bias_gradient(at::Tensor grad_bias_N, const at::Tensor& grad_RN, bool accumulate);

namespace reference {
void add_bias(at::Tensor out_RN, const at::Tensor& in_RN, const at::Tensor& bias_N);
void bias_gradient(at::Tensor grad_bias_N, const at::Tensor& grad_RN);  // +=
}  // namespace reference

}  // namespace conclave
