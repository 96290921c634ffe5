// Rows of the embedding table, and their gradient.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

// out [T,H] = table[token], tokens [T] int64, all in [0,V).
void embedding_forward(at::Tensor out_TH, const at::Tensor& table_VH, const at::Tensor& tokens_T);

// grad_table [V,H] fp32 += grad_out rows, in token order for each row of the table, whatever the number of threads.
void embedding_backward(at::Tensor grad_table_VH, const at::Tensor& grad_out_TH, const at::Tensor& tokens_T);

namespace reference {
void embedding_forward(at::Tensor out_TH, const at::Tensor& table_VH, const at::Tensor& tokens_T);
void embedding_backward(at::Tensor grad_table_VH, const at::Tensor& grad_out_TH, const at::Tensor& tokens_T);
}  // namespace reference

}  // namespace conclave
