#include "moe/expert_low_rank.h"

#include <ATen/ATen.h>

#include "kernels/values.h"

namespace conclave {
namespace {

Gradient of_chunk(const Gradient& own, const Gradient& guests, const ExpertChunk& chunk) {
  if (!own.is_wanted()) return {};
  const bool is_own = chunk.expert < own.tensor.size(0);
  return {of_expert(own.tensor, guests.tensor, chunk.expert),
          (is_own ? own : guests).accumulate || !chunk.first_of_expert};
}

struct FactorGradients {
  Gradient a_PM, b_NP;
};

FactorGradients of_chunk(const ExpertLowRankGradients& gradients, const ExpertChunk& chunk) {
  return {of_chunk(gradients.a_LPM, gradients.guest_a_GPM, chunk),
          of_chunk(gradients.b_LNP, gradients.guest_b_GNP, chunk)};
}

Dropout dropout_of(const Dropout& all, const ExpertChunk& chunk) {
  return {all.probability, all.seed, all.stream, all.sequence, all.sample_of_B, all.first_row + chunk.begin};
}

}  // namespace

LowRank ChunkLowRank::matrices(const ExpertLowRank& adapter) const {
  return {of_expert(adapter.a_LPM, adapter.guest_a_GPM, chunk_.expert),
          of_expert(adapter.b_LNP, adapter.guest_b_GNP, chunk_.expert), adapter.scale};
}

at::Tensor ChunkLowRank::outputs(const ExpertLowRank& adapter, const at::Tensor& y_RN) const {
  return y_RN.narrow(1, adapter.first, adapter.b_LNP.size(1));
}

at::Tensor ChunkLowRank::input(const ExpertLowRank& adapter, const at::Tensor& x_RM) const {
  if (!adapter.dropout) return x_RM;
  at::Tensor dropped_RM = at::empty(x_RM.sizes(), x_RM.options());
  dropout(dropped_RM, x_RM, dropout_of(*adapter.dropout, chunk_));
  return dropped_RM;
}

const at::Tensor& ChunkLowRank::inner_gradient(size_t adapter, const at::Tensor& grad_y_RN) {
  at::Tensor& grad_RP = grad_inner_RP_[adapter];
  if (!grad_RP.defined())
    grad_RP = low_rank_backward_inner(outputs(adapters_[adapter], grad_y_RN), matrices(adapters_[adapter]));
  return grad_RP;
}

void ChunkLowRank::forward_add(const at::Tensor& y_RN, const at::Tensor& x_RM) const {
  for (const ExpertLowRank& adapter : adapters_)
    low_rank_forward_add(outputs(adapter, y_RN), input(adapter, x_RM), matrices(adapter));
}

void ChunkLowRank::backward_weights(const std::vector<ExpertLowRankGradients>& gradients, const at::Tensor& grad_y_RN,
                                    const at::Tensor& x_RM) {
  for (size_t i = 0; i < gradients.size(); ++i) {
    const FactorGradients into = of_chunk(gradients[i], chunk_);
    low_rank_backward_weights(into.a_PM, into.b_NP, outputs(adapters_[i], grad_y_RN), inner_gradient(i, grad_y_RN),
                              input(adapters_[i], x_RM), matrices(adapters_[i]));
  }
}

void ChunkLowRank::backward_input_add(const at::Tensor& grad_x_RM, const at::Tensor& grad_y_RN) {
  for (size_t i = 0; i < adapters_.size(); ++i) {
    const LowRank factors = matrices(adapters_[i]);
    if (!adapters_[i].dropout) {
      low_rank_backward_input_add(grad_x_RM, inner_gradient(i, grad_y_RN), factors);
      continue;
    }
    const at::Tensor through_RM = at::zeros(grad_x_RM.sizes(), grad_x_RM.options());
    low_rank_backward_input_add(through_RM, inner_gradient(i, grad_y_RN), factors);
    dropout(through_RM, through_RM, dropout_of(*adapters_[i].dropout, chunk_));
    add_values(grad_x_RM, through_RM);
  }
}

void write_zeros(const std::vector<ExpertLowRankGradients>& gradients, const ExpertChunk& chunk) {
  for (const ExpertLowRankGradients& of_adapter : gradients) {
    const FactorGradients into = of_chunk(of_adapter, chunk);
    for (const Gradient& gradient : {into.a_PM, into.b_NP})
      if (gradient.is_wanted() && !gradient.accumulate) gradient.tensor.zero_();
  }
}

}  // namespace conclave
