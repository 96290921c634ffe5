#include <ATen/ATen.h>

#include "kernels/embedding.h"

namespace conclave::reference {

void embedding_forward(at::Tensor out_TH, const at::Tensor& table_VH, const at::Tensor& tokens_T) {
  out_TH.copy_(table_VH.index_select(0, tokens_T));
}

void embedding_backward(at::Tensor grad_table_VH, const at::Tensor& grad_out_TH, const at::Tensor& tokens_T) {
  const at::Tensor grad_out = grad_out_TH.to(grad_table_VH.scalar_type());
  if (grad_out.is_cuda()) {
    // index_add_ adds by atomics there, in any order; index_put_ sorts the rows first.
    grad_table_VH.index_put_({tokens_T}, grad_out, /*accumulate=*/true);
  } else {
    grad_table_VH.index_add_(0, tokens_T, grad_out);
  }
}

}  // namespace conclave::reference
