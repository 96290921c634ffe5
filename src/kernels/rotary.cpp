#include "kernels/rotary.h"

#include <ATen/ATen.h>

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {

namespace {

void check_rotary(const char* op, const at::Tensor& qkv_TN, int64_t heads, int64_t head_dim, const RotaryTable& table) {
  check_dims(op, "qkv", qkv_TN, 2);
  check_dims(op, "cos", table.cos_SD, 2);
  check_invariant(head_dim > 0 && head_dim % 2 == 0, "{}: head_dim {} is not even", op, head_dim);
  check_invariant(heads >= 0 && heads * head_dim <= qkv_TN.size(1), "{}: {} heads of {} in rows of {}", op, heads,
                  head_dim, qkv_TN.size(1));
  const int64_t sequence = table.cos_SD.size(0);
  check_tensor(op, "cos", table.cos_SD, {sequence, head_dim / 2}, at::kFloat);
  check_tensor(op, "sin", table.sin_SD, {sequence, head_dim / 2}, at::kFloat);
  check_invariant(sequence > 0 && qkv_TN.size(0) % sequence == 0, "{}: {} rows in sequences of {}", op, qkv_TN.size(0),
                  sequence);
}

}  // namespace

RotaryTable rotary_table(int64_t sequence_length, int64_t head_dim, double theta, at::Device device) {
  const KernelScope timed(Phase::kernels);
  check_invariant(head_dim > 0 && head_dim % 2 == 0, "rotary_table: head_dim {} is not even", head_dim);
  return kernels_of(device.type()).rotary_table(sequence_length, head_dim, theta, device);
}

RotaryTable reference::rotary_table(int64_t sequence_length, int64_t head_dim, double theta, at::Device device) {
  const auto fp32 = at::TensorOptions().dtype(at::kFloat);
  const at::Tensor exponent = at::arange(0, head_dim, 2, fp32) / static_cast<double>(head_dim);
  const at::Tensor inverse_frequency = at::reciprocal(at::pow(theta, exponent));
  const at::Tensor angle = at::outer(at::arange(sequence_length, fp32), inverse_frequency);
  return {at::cos(angle).to(device), at::sin(angle).to(device)};
}

void rotary_forward_(at::Tensor qkv_TN, int64_t heads, int64_t head_dim, const RotaryTable& table) {
  const KernelScope timed(Phase::kernels);
  check_rotary("rotary_forward_", qkv_TN, heads, head_dim, table);
  kernels_of(qkv_TN).rotary_(qkv_TN, heads, table, /*inverse=*/false);
}

void rotary_backward_(at::Tensor grad_qkv_TN, int64_t heads, int64_t head_dim, const RotaryTable& table) {
  const KernelScope timed(Phase::kernels);
  check_rotary("rotary_backward_", grad_qkv_TN, heads, head_dim, table);
  kernels_of(grad_qkv_TN).rotary_(grad_qkv_TN, heads, table, /*inverse=*/true);
}

}  // namespace conclave
