#include "kernels/rotary.h"

#include <ATen/ATen.h>

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {

namespace {

void check_rotary(const char* op, const at::Tensor& rows_TN, int64_t heads, int64_t head_dim,
                  const RotaryTable& table) {
  check_rows(op, "rows", rows_TN);
  check_dims(op, "cos", table.cos_SD, 2);
  const int64_t sequence = table.cos_SD.size(0), dims = table.dims(), columns = rows_TN.size(1);
  check_invariant(dims > 0 && dims <= head_dim, "{}: {} dims of heads of {} turn", op, dims, head_dim);
  check_invariant(heads >= 0 && (heads == 0 || (heads - 1) * head_dim + dims <= columns),
                  "{}: {} heads of {} in rows of {}", op, heads, head_dim, columns);
  check_tensor(op, "sin", table.sin_SD, table.cos_SD.sizes(), at::kFloat);
  check_tensor(op, "cos", table.cos_SD, table.sin_SD.sizes(), at::kFloat);
  if (table.position_T.defined()) return check_tensor(op, "position", table.position_T, {rows_TN.size(0)}, at::kInt);
  check_invariant(sequence > 0 && rows_TN.size(0) % sequence == 0, "{}: {} rows in sequences of {}", op,
                  rows_TN.size(0), sequence);
}

}  // namespace

RotaryTable rotary_table(int64_t sequence_length, const RotaryOptions& options, at::Device device) {
  const KernelScope timed(Phase::kernels);
  check_invariant(options.dims > 0 && options.dims % 2 == 0, "rotary_table: {} dims are not pairs", options.dims);
  check_invariant(options.factor > 0, "rotary_table: factor {}", options.factor);
  const bool knows_original = options.original_positions > 0;
  check_invariant(knows_original || options.scaling == RotaryScaling::none || options.scaling == RotaryScaling::linear,
                  "rotary_table: {} original positions", options.original_positions);
  return kernels_of(device.type()).rotary_table(sequence_length, options, device);
}

void rotary_forward_(at::Tensor rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table) {
  const KernelScope timed(Phase::kernels);
  check_rotary("rotary_forward_", rows_TN, heads, head_dim, table);
  kernels_of(rows_TN).rotary_(rows_TN, heads, head_dim, table, /*inverse=*/false);
}

void rotary_backward_(at::Tensor grad_rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table) {
  const KernelScope timed(Phase::kernels);
  check_rotary("rotary_backward_", grad_rows_TN, heads, head_dim, table);
  kernels_of(grad_rows_TN).rotary_(grad_rows_TN, heads, head_dim, table, /*inverse=*/true);
}

}  // namespace conclave
