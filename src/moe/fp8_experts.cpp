#include "moe/fp8_experts.h"

#include "kernels/fp8_product.h"
#include "moe/chunked_experts.h"

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

// Of the matrices in fp8: what a pass reads of them, once for all chunks of the expert.
struct Fp8Products {
  Fp8Products(const at::Tensor& gate_up_JH, const at::Tensor& down_HI, ExpertMatrices matrices, Pass pass)
      : transposed(matrices == ExpertMatrices::input_major) {
    const auto quantized = transposed ? quantize_transposed_weight : quantize_weight;
    const auto quantized_transposed = transposed ? quantize_weight : quantize_transposed_weight;
    if (pass != Pass::backward) gate_up_weight = quantized(gate_up_JH);
    if (pass == Pass::forward) {
      down_weight = quantized(down_HI);
    } else {
      transposed_gate_up_weight = quantized_transposed(gate_up_JH);
      transposed_down_weight = quantized_transposed(down_HI);
    }
  }

  void gate_up(const at::Tensor& y_RJ, const at::Tensor& x_RH) const { multiply(y_RJ, x_RH, gate_up_weight); }
  void down(const at::Tensor& y_RH, const at::Tensor& x_RI) const { multiply(y_RH, x_RI, down_weight); }
  void gate_up_backward(const at::Tensor& grad_x_RH, const at::Tensor& grad_y_RJ) const {
    multiply_gradient(grad_x_RH, grad_y_RJ, transposed_gate_up_weight);
  }
  void down_backward(const at::Tensor& grad_x_RI, const at::Tensor& grad_y_RH) const {
    multiply_gradient(grad_x_RI, grad_y_RH, transposed_down_weight);
  }
  void add_weight_gradient(const Gradient& gradient, const at::Tensor& grad_y_RN, const at::Tensor& x_RM) const {
    const Fp8Matrix grad_y = quantize_columns(grad_y_RN, gradient_format), x = quantize_columns(x_RM, forward_format);
    fp8_product(gradient.tensor, transposed ? x : grad_y, transposed ? grad_y : x, gradient.accumulate);
  }

  bool transposed;
  Fp8Matrix gate_up_weight, down_weight, transposed_gate_up_weight, transposed_down_weight;
};

}  // namespace

ExpertOutput fp8_experts_forward(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert,
                                 const ExpertWeights& weights, PreActivation pre_activation) {
  return chunked_experts_forward<Fp8Products>(rows, rows_per_expert, weights, pre_activation);
}

ExpertRows fp8_experts_backward(const at::Tensor& grad_RH, ExpertRows rows, at::Tensor gate_up_RJ,
                                const std::vector<int64_t>& rows_per_expert, const ExpertWeights& weights,
                                ExpertGradients& gradients) {
  return chunked_experts_backward<Fp8Products>(grad_RH, std::move(rows), std::move(gate_up_RJ), rows_per_expert,
                                               weights, gradients);
}

}  // namespace conclave
