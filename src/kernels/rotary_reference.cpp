#include <ATen/ATen.h>

#include "kernels/check.h"
#include "kernels/rotary.h"

namespace conclave::reference {

namespace {

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)
void rotate_(const at::Tensor& rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table,
             const at::Tensor& sin_SD) {
  if (heads == 0) return;
  const int64_t tokens = rows_TN.size(0), sequence = table.cos_SD.size(0), half = table.dims() / 2;
  const at::ScalarType wide = wide_dtype(rows_TN.scalar_type());
  const at::Tensor turned_TND =
      rows_TN.as_strided({tokens, heads, table.dims()}, {rows_TN.stride(0), head_dim, 1}, rows_TN.storage_offset());
  const auto of_pairs = [&](int64_t which) {
    return table.interleaved ? turned_TND.slice(2, which, c10::nullopt, 2) : turned_TND.narrow(2, which * half, half);
  };
  const at::Tensor first = of_pairs(0).to(wide, /*non_blocking=*/false, /*copy=*/true);
  const at::Tensor second = of_pairs(1).to(wide, false, true);
  const auto of_rows = [&](const at::Tensor& values_SD) {
    const at::Tensor values = values_SD.to(wide);
    return (table.position_T.defined() ? values.index_select(0, table.position_T)
                                       : values.repeat({tokens / sequence, 1}))
        .unsqueeze(1);
  };
  const at::Tensor cos = of_rows(table.cos_SD), sin = of_rows(sin_SD);
  of_pairs(0).copy_(first * cos - second * sin);
  of_pairs(1).copy_(second * cos + first * sin);
}

}  // namespace

void rotary_forward_(at::Tensor rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table) {
  rotate_(rows_TN, heads, head_dim, table, table.sin_SD);
}

void rotary_backward_(at::Tensor grad_rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table) {
  rotate_(grad_rows_TN, heads, head_dim, table, -table.sin_SD);
}

}  // namespace conclave::reference
