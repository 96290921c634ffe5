#include "moe/fp8_experts.h"

#include <ATen/ATen.h>

#include "kernels/fp8_product.h"
#include "kernels/swiglu.h"
#include "moe/expert_chunks.h"

namespace conclave {
namespace {

constexpr at::ScalarType forward_format = at::kFloat8_e4m3fn, gradient_format = at::kFloat8_e5m2;

// y = x W^T.
void multiply(const at::Tensor& y_RN, const at::Tensor& x_RM, const Fp8Matrix& weight) {
  fp8_product(y_RN, quantize_rows(x_RM, forward_format), weight, /*accumulate=*/false);
}

// grad_x = grad_y W.
void multiply_gradient(const at::Tensor& grad_x_RM, const at::Tensor& grad_y_RN, const Fp8Matrix& transposed_weight) {
  fp8_product(grad_x_RM, quantize_rows(grad_y_RN, gradient_format), transposed_weight, /*accumulate=*/false);
}

// grad_W = or += grad_y^T x.
void add_weight_gradient(const Gradient& gradient, const at::Tensor& grad_y_RN, const at::Tensor& x_RM) {
  fp8_product(gradient.tensor, quantize_columns(grad_y_RN, gradient_format), quantize_columns(x_RM, forward_format),
              gradient.accumulate);
}

}  // namespace

ExpertOutput fp8_experts_forward(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert,
                                 const ExpertWeights& weights, PreActivation pre_activation) {
  const ForwardRoom room(rows, rows_per_expert, weights, pre_activation);
  Fp8Matrix gate_up_weight, down_weight;
  for (const ExpertChunk& chunk : room.chunks) {
    if (chunk.rows == 0) continue;
    const auto rows_of = [&](const at::Tensor& tensor) { return tensor.narrow(0, chunk.begin, chunk.rows); };
    if (chunk.first_of_expert) {
      gate_up_weight = down_weight = {};  // their memory is taken again
      gate_up_weight = quantize_weight(of_expert(weights.gate_up_LJH, weights.guest_gate_up_GJH, chunk.expert));
      down_weight = quantize_weight(of_expert(weights.down_LHI, weights.guest_down_GHI, chunk.expert));
    }
    const at::Tensor gate_up = room.gate_up(chunk), activation = room.activation(chunk);
    multiply(gate_up, rows_of(rows.row_RH), gate_up_weight);
    swiglu_forward(activation, gate_up, rows_of(rows.weight_R));
    multiply(rows_of(room.output.row_RH), activation, down_weight);
  }
  return room.output;
}

// By value, so that the rows are gone with this function.
// NOLINTNEXTLINE(performance-unnecessary-value-param)
ExpertRows fp8_experts_backward(const at::Tensor& grad_RH, ExpertRows rows, at::Tensor gate_up_RJ,
                                const std::vector<int64_t>& rows_per_expert, const ExpertWeights& weights,
                                ExpertGradients& gradients) {
  ExpertRows grad{rows.row_RH, at::empty_like(rows.weight_R)};
  const auto options = rows.row_RH.options();
  const std::vector<ExpertChunk> chunks = chunks_of(rows.row_RH, rows_per_expert);
  const int64_t most = most_rows(chunks);
  const bool repeat = !gate_up_RJ.defined();
  const at::Tensor activation_buffer = at::empty({most, weights.down_LHI.size(2)}, options);
  const at::Tensor gate_up_buffer = repeat ? at::empty({most, weights.gate_up_LJH.size(1)}, options) : at::Tensor();
  Fp8Matrix gate_up_weight, transposed_gate_up_weight, transposed_down_weight;
  for (const ExpertChunk& chunk : chunks) {
    const Gradient grad_gate_up_weight = gradient_of(gradients.gate_up_LJH, gradients.guest_gate_up_GJH, chunk);
    const Gradient grad_down_weight = gradient_of(gradients.down_LHI, gradients.guest_down_GHI, chunk);
    if (chunk.rows == 0) {
      for (const Gradient& gradient : {grad_gate_up_weight, grad_down_weight})
        if (!gradient.accumulate) gradient.tensor.zero_();
      continue;
    }
    const auto rows_of = [&](const at::Tensor& tensor) { return tensor.narrow(0, chunk.begin, chunk.rows); };
    if (chunk.first_of_expert) {
      gate_up_weight = transposed_gate_up_weight = transposed_down_weight = {};  // their memory is taken again
      const at::Tensor gate_up_JH = of_expert(weights.gate_up_LJH, weights.guest_gate_up_GJH, chunk.expert);
      if (repeat) gate_up_weight = quantize_weight(gate_up_JH);
      transposed_gate_up_weight = quantize_transposed_weight(gate_up_JH);
      transposed_down_weight =
          quantize_transposed_weight(of_expert(weights.down_LHI, weights.guest_down_GHI, chunk.expert));
    }
    const at::Tensor grad_rows = rows_of(grad_RH), input = rows_of(rows.row_RH);
    const at::Tensor gate_up = repeat ? gate_up_buffer.narrow(0, 0, chunk.rows) : rows_of(gate_up_RJ);
    const at::Tensor activation = activation_buffer.narrow(0, 0, chunk.rows);
    if (repeat) multiply(gate_up, input, gate_up_weight);
    multiply_gradient(activation, grad_rows, transposed_down_weight);
    // Over the gradient of the activation comes the activation, over the pre-activation its gradient.
    swiglu_backward(gate_up, activation, rows_of(grad.weight_R), activation, gate_up, rows_of(rows.weight_R));
    add_weight_gradient(grad_down_weight, grad_rows, activation);
    add_weight_gradient(grad_gate_up_weight, gate_up, input);
    multiply_gradient(rows_of(grad.row_RH), gate_up, transposed_gate_up_weight);
  }
  return grad;
}

}  // namespace conclave
