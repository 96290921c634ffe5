#include <ATen/ATen.h>

#include "kernels/check.h"
#include "kernels/rotary.h"

namespace conclave::reference {

namespace {

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)
void rotate_(const at::Tensor& qkv_TN, int64_t heads, int64_t head_dim, const at::Tensor& cos_SD,
             const at::Tensor& sin_SD) {
  const int64_t tokens = qkv_TN.size(0), sequence = cos_SD.size(0), half = head_dim / 2;
  const at::ScalarType wide = wide_dtype(qkv_TN.scalar_type());
  const at::Tensor heads_TND = qkv_TN.narrow(1, 0, heads * head_dim).view({tokens, heads, head_dim});
  const at::Tensor first = heads_TND.narrow(2, 0, half).to(wide, /*non_blocking=*/false, /*copy=*/true);
  const at::Tensor second = heads_TND.narrow(2, half, half).to(wide, false, true);
  const at::Tensor cos = cos_SD.to(wide).repeat({tokens / sequence, 1}).unsqueeze(1);
  const at::Tensor sin = sin_SD.to(wide).repeat({tokens / sequence, 1}).unsqueeze(1);
  heads_TND.narrow(2, 0, half).copy_(first * cos - second * sin);
  heads_TND.narrow(2, half, half).copy_(second * cos + first * sin);
}

}  // namespace

void rotary_forward_(at::Tensor qkv_TN, int64_t heads, int64_t head_dim, const RotaryTable& table) {
  rotate_(qkv_TN, heads, head_dim, table.cos_SD, table.sin_SD);
}

void rotary_backward_(at::Tensor grad_qkv_TN, int64_t heads, int64_t head_dim, const RotaryTable& table) {
  rotate_(grad_qkv_TN, heads, head_dim, table.cos_SD, -table.sin_SD);
}

}  // namespace conclave::reference
