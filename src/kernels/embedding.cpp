#include "kernels/embedding.h"

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {

void embedding_forward(at::Tensor out_TH, const at::Tensor& table_VH, const at::Tensor& tokens_T) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "embedding_forward";
  check_dims(op, "table", table_VH, 2);
  check_tensor(op, "tokens", tokens_T, {tokens_T.numel()}, at::kLong);
  check_tensor(op, "out", out_TH, {tokens_T.numel(), table_VH.size(1)}, table_VH.scalar_type());
  kernels_of(table_VH).embedding_forward(out_TH, table_VH, tokens_T);
}

void embedding_backward(at::Tensor grad_table_VH, const at::Tensor& grad_out_TH, const at::Tensor& tokens_T) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "embedding_backward";
  check_dims(op, "grad_out", grad_out_TH, 2);
  check_dims(op, "grad_table", grad_table_VH, 2);
  check_tensor(op, "tokens", tokens_T, {grad_out_TH.size(0)}, at::kLong);
  check_tensor(op, "grad_table", grad_table_VH, {grad_table_VH.size(0), grad_out_TH.size(1)},
               wide_dtype(grad_out_TH.scalar_type()));
  kernels_of(grad_out_TH).embedding_backward(grad_table_VH, grad_out_TH, tokens_T);
}

}  // namespace conclave
