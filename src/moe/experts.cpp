#include "moe/experts.h"

#include <utility>

#include "kernels/linear.h"
#include "moe/chunked_experts.h"

namespace conclave {
namespace {

// y = x W^T of a matrix W [N,M], or of its transpose where matrices lie by rows of inputs.
void multiply(const at::Tensor& y_RN, const at::Tensor& x_RM, const at::Tensor& matrix, bool is_transposed) {
  is_transposed ? linear_backward_input(y_RN, x_RM, matrix) : linear_forward(y_RN, x_RM, matrix);
}

// Of the matrices as they are.
struct Products {
  Products(at::Tensor gate_up, at::Tensor down, ExpertMatrices matrices, Pass /*pass*/)
      : gate_up_JH(std::move(gate_up)), down_HI(std::move(down)), transposed(matrices == ExpertMatrices::input_major) {}

  void gate_up(const at::Tensor& y_RJ, const at::Tensor& x_RH) const { multiply(y_RJ, x_RH, gate_up_JH, transposed); }
  void down(const at::Tensor& y_RH, const at::Tensor& x_RI) const { multiply(y_RH, x_RI, down_HI, transposed); }
  void gate_up_backward(const at::Tensor& grad_x_RH, const at::Tensor& grad_y_RJ) const {
    multiply(grad_x_RH, grad_y_RJ, gate_up_JH, !transposed);
  }
  void down_backward(const at::Tensor& grad_x_RI, const at::Tensor& grad_y_RH) const {
    multiply(grad_x_RI, grad_y_RH, down_HI, !transposed);
  }
  void add_weight_gradient(const Gradient& gradient, const at::Tensor& grad_y, const at::Tensor& x) const {
    linear_backward_weight(gradient.tensor, transposed ? x : grad_y, transposed ? grad_y : x, gradient.accumulate);
  }

  at::Tensor gate_up_JH, down_HI;
  bool transposed;
};

}  // namespace

ExpertOutput experts_forward(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert,
                             const ExpertWeights& weights, PreActivation pre_activation) {
  return chunked_experts_forward<Products>(rows, rows_per_expert, weights, pre_activation);
}

ExpertRows experts_backward(const at::Tensor& grad_RH, ExpertRows rows, at::Tensor gate_up_RJ,
                            const std::vector<int64_t>& rows_per_expert, const ExpertWeights& weights,
                            ExpertGradients& gradients) {
  return chunked_experts_backward<Products>(grad_RH, std::move(rows), std::move(gate_up_RJ), rows_per_expert, weights,
                                            gradients);
}

}  // namespace conclave
