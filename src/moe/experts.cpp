#include "moe/experts.h"

#include "kernels/linear.h"
#include "kernels/swiglu.h"
#include "moe/expert_chunks.h"

namespace conclave {

ExpertOutput experts_forward(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert,
                             const ExpertWeights& weights, PreActivation pre_activation) {
  const ForwardRoom room(rows, rows_per_expert, weights, pre_activation);
  for (const ExpertChunk& chunk : room.chunks) {
    const auto rows_of = [&](const at::Tensor& tensor) { return tensor.narrow(0, chunk.begin, chunk.rows); };
    const at::Tensor gate_up = room.gate_up(chunk), activation = room.activation(chunk);
    linear_forward(gate_up, rows_of(rows.row_RH),
                   of_expert(weights.gate_up_LJH, weights.guest_gate_up_GJH, chunk.expert));
    swiglu_forward(activation, gate_up, rows_of(rows.weight_R));
    linear_forward(rows_of(room.output.row_RH), activation,
                   of_expert(weights.down_LHI, weights.guest_down_GHI, chunk.expert));
  }
  return room.output;
}

// By value, so that the rows are gone with this function.
// NOLINTNEXTLINE(performance-unnecessary-value-param)
ExpertRows experts_backward(const at::Tensor& grad_RH, ExpertRows rows, at::Tensor gate_up_RJ,
                            const std::vector<int64_t>& rows_per_expert, const ExpertWeights& weights,
                            ExpertGradients& gradients) {
  ExpertRows grad{rows.row_RH, at::empty_like(rows.weight_R)};
  const auto options = rows.row_RH.options();
  const std::vector<ExpertChunk> chunks = chunks_of(rows.row_RH, rows_per_expert);
  const int64_t most = most_rows(chunks);
  const bool repeat = !gate_up_RJ.defined();
  const at::Tensor activation_buffer = at::empty({most, weights.down_LHI.size(2)}, options);
  const at::Tensor gate_up_buffer = repeat ? at::empty({most, weights.gate_up_LJH.size(1)}, options) : at::Tensor();
  for (const ExpertChunk& chunk : chunks) {
    const auto rows_of = [&](const at::Tensor& tensor) { return tensor.narrow(0, chunk.begin, chunk.rows); };
    const at::Tensor grad_rows = rows_of(grad_RH), input = rows_of(rows.row_RH);
    const at::Tensor gate_up = repeat ? gate_up_buffer.narrow(0, 0, chunk.rows) : rows_of(gate_up_RJ);
    const at::Tensor activation = activation_buffer.narrow(0, 0, chunk.rows);
    const at::Tensor gate_up_weight = of_expert(weights.gate_up_LJH, weights.guest_gate_up_GJH, chunk.expert);
    const at::Tensor down_weight = of_expert(weights.down_LHI, weights.guest_down_GHI, chunk.expert);
    if (repeat) linear_forward(gate_up, input, gate_up_weight);
    linear_backward_input(activation, grad_rows, down_weight);
    // Over the gradient of the activation comes the activation, over the pre-activation its gradient.
    swiglu_backward(gate_up, activation, rows_of(grad.weight_R), activation, gate_up, rows_of(rows.weight_R));
    const auto add_weight_gradient = [&](const Gradient& own, const Gradient& guest, const at::Tensor& grad_y,
                                         const at::Tensor& x) {
      const Gradient gradient = gradient_of(own, guest, chunk);
      linear_backward_weight(gradient.tensor, grad_y, x, gradient.accumulate);
    };
    add_weight_gradient(gradients.down_LHI, gradients.guest_down_GHI, grad_rows, activation);
    add_weight_gradient(gradients.gate_up_LJH, gradients.guest_gate_up_GJH, gate_up, input);
    linear_backward_input(rows_of(grad.row_RH), gate_up, gate_up_weight);
  }
  return grad;
}

}  // namespace conclave
