// Matrix products of a linear layer, y = x w^T, and of its backward pass. Products run in the dtype of the inputs
// (fp32, or bf16 with fp32 accumulation inside one product) through libraries (product.h, blocked_product.h); on the
// CPU in fixed tiles, so that results do not depend on the number of threads. Zero rows are ordinary. Last dims must be
// contiguous. Where x is bf16, w may be fp32 in forward and for grad_x: it is rounded to bf16 as it is read, to the
// same bits as if it had been before.
//
// Legend of all kernels: T tokens on this rank, H hidden, I intermediate, E experts, K top-k, R rows, S sequence, B
// batch, V vocabulary.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

// y [R,N] = x [R,M] w^T, w [N,M].
void linear_forward(at::Tensor y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM);

// y += x w^T: a residual addition without a pass of its own.
void linear_forward_add(at::Tensor y_RN, const at::Tensor& x_RM, const at::Tensor& w_NM);

// grad_x = grad_y w.
void linear_backward_input(at::Tensor grad_x_RM, const at::Tensor& grad_y_RN, const at::Tensor& w_NM);

// grad_x += grad_y w.
void linear_backward_input_add(at::Tensor grad_x_RM, const at::Tensor& grad_y_RN, const at::Tensor& w_NM);

// grad_w = grad_y^T x, or grad_w += with `accumulate`. grad_w is fp32, usually a view of the flat gradient buffer;
// written in place when the inputs are fp32, on CUDA, and when bf16 is multiplied in blocks (blocked_product.h);
// elsewhere a bf16 product is rounded to bf16 once on its way, tile by tile. With zero rows grad_w is
// zeroed, or left as it is with `accumulate`.
void linear_backward_weight(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM, bool accumulate);

// [R,N]: rows [R,M] times the matrix [M,N] of their expert; ends [L] int32: where the rows of each expert end.
at::Tensor grouped_product(const at::Tensor& row_RM, const at::Tensor& matrix_LMN, const at::Tensor& ends_L);

namespace reference {
void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate);
void weight_gradient(at::Tensor grad_w_NM, const at::Tensor& grad_y_RN, const at::Tensor& x_RM, bool accumulate);
at::Tensor grouped_product(const at::Tensor& row_RM, const at::Tensor& matrix_LMN, const at::Tensor& ends_L);
}  // namespace reference

}  // namespace conclave
