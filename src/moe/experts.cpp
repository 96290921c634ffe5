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

std::vector<ExpertWeights::OwnAndGuests> ExpertWeights::parts() {
  std::vector<OwnAndGuests> all = {{&gate_up_LJH, &guest_gate_up_GJH},
                                   {&down_LHI, &guest_down_GHI},
                                   {&gate_up_bias_LJ, &guest_gate_up_bias_GJ},
                                   {&down_bias_LH, &guest_down_bias_GH}};
  for (std::vector<ExpertLowRank>* adapters : {&gate_up_low_rank, &down_low_rank})
    for (ExpertLowRank& adapter : *adapters) {
      all.push_back({&adapter.a_LPM, &adapter.guest_a_GPM});
      all.push_back({&adapter.b_LNP, &adapter.guest_b_GNP});
    }
  std::erase_if(all, [](const OwnAndGuests& part) { return !part.own->defined(); });
  return all;
}

std::vector<ExpertGradients::OwnAndGuests> ExpertGradients::wanted() {
  std::vector<OwnAndGuests> all = {{&gate_up_LJH, &guest_gate_up_GJH},
                                   {&down_LHI, &guest_down_GHI},
                                   {&gate_up_bias_LJ, &guest_gate_up_bias_GJ},
                                   {&down_bias_LH, &guest_down_bias_GH}};
  for (std::vector<ExpertLowRankGradients>* adapters : {&gate_up_low_rank, &down_low_rank})
    for (ExpertLowRankGradients& adapter : *adapters) {
      all.push_back({&adapter.a_LPM, &adapter.guest_a_GPM});
      all.push_back({&adapter.b_LNP, &adapter.guest_b_GNP});
    }
  std::erase_if(all, [](const OwnAndGuests& gradient) { return !gradient.own->is_wanted(); });
  return all;
}

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
