#include <ATen/ATen.h>

#include "kernels/embedding.h"

namespace conclave::reference {

void embedding_forward(at::Tensor out_TH, const at::Tensor& table_VH, const at::Tensor& tokens_T) {
  out_TH.copy_(table_VH.index_select(0, tokens_T));
}

void embedding_backward(at::Tensor grad_table_VH, const at::Tensor& grad_out_TH, const at::Tensor& tokens_T) {
  const at::Tensor grad_out = grad_out_TH.to(grad_table_VH.scalar_type());
  // Sorts the rows first; index_add_ adds by atomics on a GPU, in any order.
  grad_table_VH.index_put_({tokens_T}, grad_out, /*accumulate=*/true);
}

}  // namespace conclave::reference
