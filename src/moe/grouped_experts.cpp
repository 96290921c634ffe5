#include "moe/grouped_experts.h"

#include <ATen/ATen.h>

#include <numeric>

#include "base/cuda_rules.h"
#include "device/device.h"
#include "kernels/linear.h"
#include "kernels/swiglu.h"
#include "memory/memory_category.h"

namespace conclave {

namespace {

// Where the rows of each expert end, int32, as at::_grouped_mm wants them. Not waited for: what is copied from ordinary
// memory has left it when the call returns.
at::Tensor ends_of(const std::vector<int64_t>& rows_per_expert, at::Device device) {
  at::Tensor ends = at::tensor(rows_per_expert, at::kInt).cumsum(0, at::kInt);
  return ends.to(device, /*non_blocking=*/true);
}

// gradient [L,N,M] = or += grad_y^T x over each expert's rows. Each expert's is a product of its own, because a grouped
// one would leave bf16, which to put into the gradient takes a pass over memory as long as the product itself. One
// alone is too small to fill a GPU to its end, so they overlap.
void add_weight_gradients(const Gradient& gradient, const at::Tensor& grad_y_RN, const at::Tensor& x_RM,
                          const std::vector<int64_t>& rows_per_expert) {
  if (!gradient.tensor.defined()) return;  // of frozen experts
  std::vector<int64_t> begin(rows_per_expert.size(), 0);
  std::exclusive_scan(rows_per_expert.begin(), rows_per_expert.end(), begin.begin(), int64_t{0});
  const auto add = [&](int64_t expert) {
    const auto at = static_cast<size_t>(expert);
    linear_backward_weight(gradient.tensor[expert], grad_y_RN.narrow(0, begin[at], rows_per_expert[at]),
                           x_RM.narrow(0, begin[at], rows_per_expert[at]), gradient.accumulate);
  };
  const auto experts = static_cast<int64_t>(rows_per_expert.size());
  kernels_of(x_RM).overlapping(experts, add);
}

}  // namespace

bool takes_grouped_products(const ExpertRows& rows, const ExpertWeights& weights) {
  const at::Tensor& down_LHI = weights.down_LHI;
  return device_of(rows.row_RH.device()).facts().groups_products && rows.row_RH.scalar_type() == at::kBFloat16 &&
         !weights.guest_gate_up_GJH.defined() &&
         groups_products(rows.row_RH.size(0), down_LHI.size(0), down_LHI.size(1), down_LHI.size(2),
                         static_cast<int64_t>(down_LHI.element_size()));
}

ExpertOutput grouped_experts_forward(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert,
                                     const ExpertWeights& weights, PreActivation pre_activation) {
  const at::Tensor ends_L = ends_of(rows_per_expert, rows.row_RH.device());
  ExpertOutput output;
  at::Tensor gate_up_RJ;
  {
    MemoryScope scope(MemoryCategory::activations);
    gate_up_RJ = grouped_product(rows.row_RH, weights.gate_up_LJH.transpose(1, 2), ends_L);
  }
  const at::Tensor activation_RI = at::empty({gate_up_RJ.size(0), weights.down_LHI.size(2)}, gate_up_RJ.options());
  swiglu_forward(activation_RI, gate_up_RJ, rows.weight_R);
  if (pre_activation == PreActivation::kept) output.gate_up_RJ = gate_up_RJ;
  gate_up_RJ.reset();
  MemoryScope scope(MemoryCategory::dispatch);
  output.row_RH = grouped_product(activation_RI, weights.down_LHI.transpose(1, 2), ends_L);
  return output;
}

// By value, so that the rows are gone with this function.
// NOLINTNEXTLINE(performance-unnecessary-value-param)
ExpertRows grouped_experts_backward(const at::Tensor& grad_RH, ExpertRows rows, at::Tensor gate_up_RJ,
                                    const std::vector<int64_t>& rows_per_expert, const ExpertWeights& weights,
                                    ExpertGradients& gradients) {
  const at::Tensor ends_L = ends_of(rows_per_expert, rows.row_RH.device());
  if (!gate_up_RJ.defined()) gate_up_RJ = grouped_product(rows.row_RH, weights.gate_up_LJH.transpose(1, 2), ends_L);
  ExpertRows grad{{}, at::empty_like(rows.weight_R)};
  at::Tensor activation_RI = grouped_product(grad_RH, weights.down_LHI, ends_L);
  // Over the gradient of the activation comes the activation, over the pre-activation its gradient.
  swiglu_backward(gate_up_RJ, activation_RI, grad.weight_R, activation_RI, gate_up_RJ, rows.weight_R);
  add_weight_gradients(gradients.down_LHI, grad_RH, activation_RI, rows_per_expert);
  activation_RI.reset();
  add_weight_gradients(gradients.gate_up_LJH, gate_up_RJ, rows.row_RH, rows_per_expert);
  grad.row_RH = grouped_product(gate_up_RJ, weights.gate_up_LJH, ends_L);
  return grad;
}

}  // namespace conclave
