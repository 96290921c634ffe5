#include "moe/grouped_experts.h"

#include <ATen/ATen.h>

#include <numeric>

#include "base/cuda_rules.h"
#include "device/device.h"
#include "kernels/bias.h"
#include "kernels/linear.h"
#include "kernels/values.h"
#include "memory/memory_category.h"
#include "moe/expert_activation.h"

namespace conclave {

namespace {

// Where the rows of each expert end, int32, as at::_grouped_mm wants them. Not waited for: what is copied from ordinary
// memory has left it when the call returns.
at::Tensor ends_of(const std::vector<int64_t>& rows_per_expert, at::Device device) {
  at::Tensor ends = at::tensor(rows_per_expert, at::kInt).cumsum(0, at::kInt);
  return ends.to(device, /*non_blocking=*/true);
}

// Of all experts' matrices: rows times each one's, as they lie, or transposed.
at::Tensor multiply(const at::Tensor& row_RM, const at::Tensor& matrix_LXY, bool transposed, const at::Tensor& ends_L) {
  return grouped_product(row_RM, transposed ? matrix_LXY.transpose(1, 2) : matrix_LXY, ends_L);
}

// y [R,N] += scale * (rows A^T) B^T of each adapter.
void add_low_rank(const at::Tensor& y_RN, const at::Tensor& row_RM, const std::vector<ExpertLowRank>& adapters,
                  const at::Tensor& ends_L) {
  for (const ExpertLowRank& adapter : adapters) {
    const at::Tensor inner_RP = multiply(row_RM, adapter.a_LPM, /*transposed=*/true, ends_L).mul_(adapter.scale);
    add_values(y_RN.narrow(1, adapter.first, adapter.b_LNP.size(1)),
               multiply(inner_RP, adapter.b_LNP, /*transposed=*/true, ends_L));
  }
}

// The gradients of rows A^T.
std::vector<at::Tensor> inner_gradients(const at::Tensor& grad_y_RN, const std::vector<ExpertLowRank>& adapters,
                                        const at::Tensor& ends_L) {
  std::vector<at::Tensor> gradients;
  for (const ExpertLowRank& adapter : adapters) {
    const at::Tensor of_outputs = grad_y_RN.narrow(1, adapter.first, adapter.b_LNP.size(1));
    gradients.push_back(multiply(of_outputs, adapter.b_LNP, /*transposed=*/false, ends_L).mul_(adapter.scale));
  }
  return gradients;
}

void add_low_rank_backward(const at::Tensor& grad_row_RM, const std::vector<at::Tensor>& grad_inner_RP,
                           const std::vector<ExpertLowRank>& adapters, const at::Tensor& ends_L) {
  for (size_t i = 0; i < adapters.size(); ++i)
    add_values(grad_row_RM, multiply(grad_inner_RP[i], adapters[i].a_LPM, /*transposed=*/false, ends_L));
}

at::Tensor pre_activations(const at::Tensor& row_RH, const ExpertWeights& weights, const at::Tensor& ends_L) {
  at::Tensor gate_up_RJ = multiply(row_RH, weights.gate_up_LJH, !weights.is_input_major(), ends_L);
  add_low_rank(gate_up_RJ, row_RH, weights.gate_up_low_rank, ends_L);
  if (weights.gate_up_bias_LJ.defined()) add_bias(gate_up_RJ, weights.gate_up_bias_LJ, {}, ends_L);
  return gate_up_RJ;
}

// gradient [L,N,M] = or += a^T b over each expert's rows. Each expert's is a product of its own, because a grouped one
// would leave bf16, which to put into the gradient takes a pass over memory as long as the product itself. One alone is
// too small to fill a GPU to its end, so they overlap.
void add_weight_gradients(const Gradient& gradient, const at::Tensor& a_RN, const at::Tensor& b_RM,
                          const std::vector<int64_t>& rows_per_expert) {
  if (!gradient.is_wanted()) return;  // of frozen experts
  std::vector<int64_t> begin(rows_per_expert.size(), 0);
  std::exclusive_scan(rows_per_expert.begin(), rows_per_expert.end(), begin.begin(), int64_t{0});
  const auto add = [&](int64_t expert) {
    const auto at = static_cast<size_t>(expert);
    linear_backward_weight(gradient.tensor[expert], a_RN.narrow(0, begin[at], rows_per_expert[at]),
                           b_RM.narrow(0, begin[at], rows_per_expert[at]), gradient.accumulate);
  };
  const auto experts = static_cast<int64_t>(rows_per_expert.size());
  kernels_of(b_RM).overlapping(experts, add);
}

void add_low_rank_weight_gradients(const std::vector<ExpertLowRankGradients>& gradients,
                                   const std::vector<at::Tensor>& grad_inner_RP, const at::Tensor& grad_y_RN,
                                   const at::Tensor& row_RM, const std::vector<ExpertLowRank>& adapters,
                                   const std::vector<int64_t>& rows_per_expert, const at::Tensor& ends_L) {
  for (size_t i = 0; i < gradients.size(); ++i) {
    const ExpertLowRank& adapter = adapters[i];
    add_weight_gradients(gradients[i].a_LPM, grad_inner_RP[i], row_RM, rows_per_expert);
    if (!gradients[i].b_LNP.is_wanted()) continue;
    const at::Tensor inner_RP = multiply(row_RM, adapter.a_LPM, /*transposed=*/true, ends_L).mul_(adapter.scale);
    add_weight_gradients(gradients[i].b_LNP, grad_y_RN.narrow(1, adapter.first, adapter.b_LNP.size(1)), inner_RP,
                         rows_per_expert);
  }
}

// Libraries take rows of whole 16 bytes.
bool groups_low_rank(const ExpertWeights& weights) {
  for (const std::vector<ExpertLowRank>* adapters : {&weights.gate_up_low_rank, &weights.down_low_rank})
    for (const ExpertLowRank& adapter : *adapters)
      if (adapter.a_LPM.size(1) % 8 != 0) return false;
  return true;
}

}  // namespace

bool takes_grouped_products(const ExpertRows& rows, const ExpertWeights& weights) {
  return device_of(rows.row_RH.device()).facts().groups_products && rows.row_RH.scalar_type() == at::kBFloat16 &&
         !weights.guest_gate_up_GJH.defined() && groups_low_rank(weights) &&
         groups_products(rows.row_RH.size(0), weights.experts(), weights.hidden(), weights.intermediate(),
                         static_cast<int64_t>(weights.down_LHI.element_size()));
}

ExpertOutput grouped_experts_forward(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert,
                                     const ExpertWeights& weights, PreActivation pre_activation) {
  const at::Tensor ends_L = ends_of(rows_per_expert, rows.row_RH.device());
  ExpertOutput output;
  at::Tensor gate_up_RJ;
  {
    MemoryScope scope(MemoryCategory::activations);
    gate_up_RJ = pre_activations(rows.row_RH, weights, ends_L);
  }
  const at::Tensor activation_RI = at::empty({gate_up_RJ.size(0), weights.intermediate()}, gate_up_RJ.options());
  activate(activation_RI, gate_up_RJ, rows.weight_R, weights.form);
  if (pre_activation == PreActivation::kept) output.gate_up_RJ = gate_up_RJ;
  gate_up_RJ.reset();
  MemoryScope scope(MemoryCategory::dispatch);
  output.row_RH = multiply(activation_RI, weights.down_LHI, !weights.is_input_major(), ends_L);
  add_low_rank(output.row_RH, activation_RI, weights.down_low_rank, ends_L);
  if (weights.down_bias_LH.defined()) add_bias(output.row_RH, weights.down_bias_LH, rows.weight_R, ends_L);
  return output;
}

// By value, so that the rows are gone with this function.
// NOLINTNEXTLINE(performance-unnecessary-value-param)
ExpertRows grouped_experts_backward(const at::Tensor& grad_RH, ExpertRows rows, at::Tensor gate_up_RJ,
                                    const std::vector<int64_t>& rows_per_expert, const ExpertWeights& weights,
                                    ExpertGradients& gradients) {
  const at::Tensor ends_L = ends_of(rows_per_expert, rows.row_RH.device());
  if (!gate_up_RJ.defined()) gate_up_RJ = pre_activations(rows.row_RH, weights, ends_L);
  const bool input_major = weights.is_input_major();
  ExpertRows grad{{}, at::empty_like(rows.weight_R)};
  at::Tensor activation_RI = multiply(grad_RH, weights.down_LHI, input_major, ends_L);
  const std::vector<at::Tensor> of_down = inner_gradients(grad_RH, weights.down_low_rank, ends_L);
  add_low_rank_backward(activation_RI, of_down, weights.down_low_rank, ends_L);
  activate_backward(gate_up_RJ, activation_RI, grad.weight_R, rows.weight_R, weights.form);
  if (weights.down_bias_LH.defined()) {
    bias_scale_backward_add(grad.weight_R, grad_RH, weights.down_bias_LH, ends_L);
    if (gradients.down_bias_LH.tensor.defined())
      bias_backward(gradients.down_bias_LH.tensor, grad_RH, gradients.down_bias_LH.accumulate, rows.weight_R, ends_L);
  }
  if (gradients.gate_up_bias_LJ.tensor.defined())
    bias_backward(gradients.gate_up_bias_LJ.tensor, gate_up_RJ, gradients.gate_up_bias_LJ.accumulate, {}, ends_L);
  const auto add = [&](const Gradient& gradient, const at::Tensor& grad_y, const at::Tensor& x) {
    add_weight_gradients(gradient, input_major ? x : grad_y, input_major ? grad_y : x, rows_per_expert);
  };
  add(gradients.down_LHI, grad_RH, activation_RI);
  add_low_rank_weight_gradients(gradients.down_low_rank, of_down, grad_RH, activation_RI, weights.down_low_rank,
                                rows_per_expert, ends_L);
  activation_RI.reset();
  add(gradients.gate_up_LJH, gate_up_RJ, rows.row_RH);
  const std::vector<at::Tensor> of_gate_up = inner_gradients(gate_up_RJ, weights.gate_up_low_rank, ends_L);
  add_low_rank_weight_gradients(gradients.gate_up_low_rank, of_gate_up, gate_up_RJ, rows.row_RH,
                                weights.gate_up_low_rank, rows_per_expert, ends_L);
  grad.row_RH = multiply(gate_up_RJ, weights.gate_up_LJH, input_major, ends_L);
  add_low_rank_backward(grad.row_RH, of_gate_up, weights.gate_up_low_rank, ends_L);
  return grad;
}

}  // namespace conclave
