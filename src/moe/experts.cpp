#include "moe/experts.h"

#include <utility>

#include "kernels/linear.h"
#include "moe/chunked_experts.h"

namespace conclave {
namespace {

// Of the matrices as they are.
struct Products {
  Products(at::Tensor gate_up, at::Tensor down, Pass /*pass*/)
      : gate_up_JH(std::move(gate_up)), down_HI(std::move(down)) {}

  void gate_up(const at::Tensor& y_RJ, const at::Tensor& x_RH) const { linear_forward(y_RJ, x_RH, gate_up_JH); }
  void down(const at::Tensor& y_RH, const at::Tensor& x_RI) const { linear_forward(y_RH, x_RI, down_HI); }
  void gate_up_backward(const at::Tensor& grad_x_RH, const at::Tensor& grad_y_RJ) const {
    linear_backward_input(grad_x_RH, grad_y_RJ, gate_up_JH);
  }
  void down_backward(const at::Tensor& grad_x_RI, const at::Tensor& grad_y_RH) const {
    linear_backward_input(grad_x_RI, grad_y_RH, down_HI);
  }
  static void add_weight_gradient(const Gradient& gradient, const at::Tensor& grad_y, const at::Tensor& x) {
    linear_backward_weight(gradient.tensor, grad_y, x, gradient.accumulate);
  }

  at::Tensor gate_up_JH, down_HI;
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
