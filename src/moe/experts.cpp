#include "moe/experts.h"

#include <algorithm>

#include "kernels/linear.h"
#include "kernels/swiglu.h"
#include "memory/memory_category.h"

namespace conclave {
namespace {

int64_t most_rows(const std::vector<int64_t>& rows_per_expert) {
  return rows_per_expert.empty() ? 0 : *std::max_element(rows_per_expert.begin(), rows_per_expert.end());
}

// Calls body(expert, first row, rows) for every expert that has rows.
template <class Body>
void for_each_expert(const std::vector<int64_t>& rows_per_expert, Body body) {
  int64_t begin = 0;
  for (size_t expert = 0; expert < rows_per_expert.size(); ++expert) {
    if (rows_per_expert[expert] > 0) body(static_cast<int64_t>(expert), begin, rows_per_expert[expert]);
    begin += rows_per_expert[expert];
  }
}

}  // namespace

ExpertOutput experts_forward(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert,
                             const ExpertWeights& weights) {
  const auto options = rows.row_RH.options();
  ExpertOutput output;
  {
    MemoryScope scope(MemoryCategory::activations);
    output.gate_up_RJ = at::empty({rows.row_RH.size(0), weights.gate_up_LJH.size(1)}, options);
  }
  {
    MemoryScope scope(MemoryCategory::dispatch);
    output.row_RH = at::empty_like(rows.row_RH);
  }
  at::Tensor activation = at::empty({most_rows(rows_per_expert), weights.down_LHI.size(2)}, options);
  for_each_expert(rows_per_expert, [&](int64_t expert, int64_t begin, int64_t count) {
    at::Tensor gate_up = output.gate_up_RJ.narrow(0, begin, count);
    at::Tensor active = activation.narrow(0, 0, count);
    linear_forward(gate_up, rows.row_RH.narrow(0, begin, count), weights.gate_up_LJH[expert]);
    swiglu_forward(active, gate_up, rows.weight_R.narrow(0, begin, count));
    linear_forward(output.row_RH.narrow(0, begin, count), active, weights.down_LHI[expert]);
  });
  return output;
}

at::Tensor experts_gate_up(const at::Tensor& row_RH, const std::vector<int64_t>& rows_per_expert,
                           const ExpertWeights& weights) {
  MemoryScope scope(MemoryCategory::activations);
  at::Tensor gate_up_RJ = at::empty({row_RH.size(0), weights.gate_up_LJH.size(1)}, row_RH.options());
  for_each_expert(rows_per_expert, [&](int64_t expert, int64_t begin, int64_t count) {
    linear_forward(gate_up_RJ.narrow(0, begin, count), row_RH.narrow(0, begin, count), weights.gate_up_LJH[expert]);
  });
  return gate_up_RJ;
}

ExpertRows experts_backward(const at::Tensor& grad_RH, ExpertRows rows, at::Tensor gate_up_RJ,
                            const std::vector<int64_t>& rows_per_expert, const ExpertWeights& weights,
                            ExpertGradients& gradients) {
  ExpertRows grad{rows.row_RH, at::empty_like(rows.weight_R)};
  at::Tensor buffer = at::empty({most_rows(rows_per_expert), weights.down_LHI.size(2)}, rows.row_RH.options());
  int64_t begin = 0;
  for (size_t i = 0; i < rows_per_expert.size(); ++i) {
    // An expert without rows still gets its gradient: zero.
    const auto expert = static_cast<int64_t>(i);
    const int64_t count = rows_per_expert[i];
    const at::Tensor grad_rows = grad_RH.narrow(0, begin, count);
    const at::Tensor input = rows.row_RH.narrow(0, begin, count);
    at::Tensor gate_up = gate_up_RJ.narrow(0, begin, count);
    at::Tensor activation = buffer.narrow(0, 0, count);
    if (count > 0) {
      linear_backward_input(activation, grad_rows, weights.down_LHI[expert]);
      // Over the gradient of the activation comes the activation, over the pre-activation its gradient.
      swiglu_backward(gate_up, activation, grad.weight_R.narrow(0, begin, count), activation, gate_up,
                      rows.weight_R.narrow(0, begin, count));
    }
    linear_backward_weight(gradients.down_LHI.tensor[expert], grad_rows, activation, gradients.down_LHI.accumulate);
    linear_backward_weight(gradients.gate_up_LJH.tensor[expert], gate_up, input, gradients.gate_up_LJH.accumulate);
    if (count > 0) linear_backward_input(grad.row_RH.narrow(0, begin, count), gate_up, weights.gate_up_LJH[expert]);
    begin += count;
  }
  return grad;
}

}  // namespace conclave
