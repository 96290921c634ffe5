// The passes of experts over their rows, one expert after the other, in chunks: the same for every kind of products.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "kernels/bias.h"
#include "moe/expert_activation.h"
#include "moe/expert_chunks.h"
#include "moe/expert_low_rank.h"

namespace conclave {

// What an expert's matrices are made ready for. `repeating`: the pre-activation, too, is computed in the backward pass.
enum class Pass { forward, backward, backward_repeating };

// `Products` are those of one expert, made of its matrices for one pass:
//
//   Products(const at::Tensor& gate_up_JH, const at::Tensor& down_HI, ExpertMatrices matrices, Pass pass);
//   void gate_up(const at::Tensor& y_RJ, const at::Tensor& x_RH) const;
//   void down(const at::Tensor& y_RH, const at::Tensor& x_RI) const;
//   void gate_up_backward(const at::Tensor& grad_x_RH, const at::Tensor& grad_y_RJ) const;
//   void down_backward(const at::Tensor& grad_x_RI, const at::Tensor& grad_y_RH) const;
//   void add_weight_gradient(const Gradient& gradient, const at::Tensor& grad_y, const at::Tensor& x) const;
template <class Products>
class ProductsOfChunk {
 public:
  ProductsOfChunk(const ExpertWeights& weights, Pass pass) : weights_(weights), pass_(pass) {}

  const Products& operator()(const ExpertChunk& chunk) {
    if (chunk.first_of_expert) {
      products_.reset();  // what it holds is taken again
      products_.emplace(of_expert(weights_.gate_up_LJH, weights_.guest_gate_up_GJH, chunk.expert),
                        of_expert(weights_.down_LHI, weights_.guest_down_GHI, chunk.expert), weights_.form.matrices,
                        pass_);
    }
    return *products_;
  }

 private:
  const ExpertWeights& weights_;
  const Pass pass_;
  std::optional<Products> products_;
};

template <class Products>
ExpertOutput chunked_experts_forward(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert,
                                     const ExpertWeights& weights, PreActivation pre_activation) {
  const ForwardRoom room(rows, rows_per_expert, weights, pre_activation);
  ProductsOfChunk<Products> products_of(weights, Pass::forward);
  for (const ExpertChunk& chunk : room.chunks) {
    if (chunk.rows == 0) continue;
    const auto rows_of = [&](const at::Tensor& tensor) { return tensor.narrow(0, chunk.begin, chunk.rows); };
    const Products& products = products_of(chunk);
    const at::Tensor gate_up = room.gate_up(chunk), activation = room.activation(chunk);
    const at::Tensor out = rows_of(room.output.row_RH), weight = rows_of(rows.weight_R);
    const ExpertBiases biases = biases_of(weights, chunk);
    products.gate_up(gate_up, rows_of(rows.row_RH));
    ChunkLowRank(weights.gate_up_low_rank, chunk).forward_add(gate_up, rows_of(rows.row_RH));
    if (biases.gate_up.defined()) add_bias(gate_up, biases.gate_up);
    activate(activation, gate_up, weight, weights.form);
    products.down(out, activation);
    ChunkLowRank(weights.down_low_rank, chunk).forward_add(out, activation);
    if (biases.down.defined()) add_bias(out, biases.down, weight);
  }
  return room.output;
}

// By value, so that the rows are gone with this function.
template <class Products>
ExpertRows chunked_experts_backward(const at::Tensor& grad_RH, ExpertRows rows, at::Tensor gate_up_RJ,
                                    const std::vector<int64_t>& rows_per_expert, const ExpertWeights& weights,
                                    ExpertGradients& gradients) {
  ExpertRows grad{rows.row_RH, at::empty_like(rows.weight_R)};
  const auto options = rows.row_RH.options();
  const std::vector<ExpertChunk> chunks = chunks_of(rows.row_RH, rows_per_expert);
  const int64_t most = most_rows(chunks);
  const bool repeat = !gate_up_RJ.defined();
  const at::Tensor activation_buffer = at::empty({most, weights.intermediate()}, options);
  const at::Tensor gate_up_buffer = repeat ? at::empty({most, 2 * weights.intermediate()}, options) : at::Tensor();
  ProductsOfChunk<Products> products_of(weights, repeat ? Pass::backward_repeating : Pass::backward);
  for (const ExpertChunk& chunk : chunks) {
    const ChunkGradients into = gradients_of(gradients, chunk);
    if (chunk.rows == 0) {
      into.write_zeros();
      write_zeros(gradients.gate_up_low_rank, chunk);
      write_zeros(gradients.down_low_rank, chunk);
      continue;
    }
    const auto rows_of = [&](const at::Tensor& tensor) { return tensor.narrow(0, chunk.begin, chunk.rows); };
    const Products& products = products_of(chunk);
    const ExpertBiases biases = biases_of(weights, chunk);
    const at::Tensor grad_rows = rows_of(grad_RH), input = rows_of(rows.row_RH), weight = rows_of(rows.weight_R);
    const at::Tensor gate_up = repeat ? gate_up_buffer.narrow(0, 0, chunk.rows) : rows_of(gate_up_RJ);
    const at::Tensor activation = activation_buffer.narrow(0, 0, chunk.rows);
    ChunkLowRank gate_up_adapters(weights.gate_up_low_rank, chunk), down_adapters(weights.down_low_rank, chunk);
    if (repeat) {
      products.gate_up(gate_up, input);
      gate_up_adapters.forward_add(gate_up, input);
      if (biases.gate_up.defined()) add_bias(gate_up, biases.gate_up);
    }
    products.down_backward(activation, grad_rows);
    down_adapters.backward_input_add(activation, grad_rows);
    // Over the gradient of the activation comes the activation, over the pre-activation its gradient.
    activate_backward(gate_up, activation, rows_of(grad.weight_R), weight, weights.form);
    if (into.down.tensor.defined()) products.add_weight_gradient(into.down, grad_rows, activation);
    if (into.gate_up.tensor.defined()) products.add_weight_gradient(into.gate_up, gate_up, input);
    down_adapters.backward_weights(gradients.down_low_rank, grad_rows, activation);
    gate_up_adapters.backward_weights(gradients.gate_up_low_rank, gate_up, input);
    if (biases.down.defined()) {
      bias_scale_backward_add(rows_of(grad.weight_R), grad_rows, biases.down);
      if (into.down_bias.tensor.defined())
        bias_backward(into.down_bias.tensor, grad_rows, into.down_bias.accumulate, weight);
    }
    if (into.gate_up_bias.tensor.defined())
      bias_backward(into.gate_up_bias.tensor, gate_up, into.gate_up_bias.accumulate);
    products.gate_up_backward(rows_of(grad.row_RH), gate_up);
    gate_up_adapters.backward_input_add(rows_of(grad.row_RH), gate_up);
  }
  return grad;
}

}  // namespace conclave
