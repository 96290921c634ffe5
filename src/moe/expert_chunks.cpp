#include "moe/expert_chunks.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "device/device.h"
#include "memory/memory_category.h"

namespace conclave {

std::vector<ExpertChunk> chunks_of(const at::Tensor& row_RH, const std::vector<int64_t>& rows_per_expert) {
  const int64_t most = device_of(row_RH.device()).facts().expert_chunk_rows;
  std::vector<ExpertChunk> chunks;
  int64_t begin = 0;
  for (size_t expert = 0; expert < rows_per_expert.size(); ++expert) {
    const int64_t end = begin + rows_per_expert[expert];
    bool first = true;
    do {
      const int64_t rows = std::min(most, end - begin);
      chunks.push_back({static_cast<int64_t>(expert), begin, rows, first});
      begin += rows;
      first = false;
    } while (begin < end);
  }
  return chunks;
}

int64_t most_rows(const std::vector<ExpertChunk>& chunks) {
  int64_t most = 0;
  for (const ExpertChunk& chunk : chunks) most = std::max(most, chunk.rows);
  return most;
}

ForwardRoom::ForwardRoom(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert,
                         const ExpertWeights& weights, PreActivation pre_activation)
    : chunks(chunks_of(rows.row_RH, rows_per_expert)) {
  const auto options = rows.row_RH.options();
  const int64_t width = 2 * weights.intermediate(), most = most_rows(chunks);
  if (pre_activation == PreActivation::kept) {
    MemoryScope scope(MemoryCategory::activations);
    output.gate_up_RJ = at::empty({rows.row_RH.size(0), width}, options);
  } else {
    gate_up_buffer_ = at::empty({most, width}, options);
  }
  activation_buffer_ = at::empty({most, weights.intermediate()}, options);
  MemoryScope scope(MemoryCategory::dispatch);
  output.row_RH = at::empty_like(rows.row_RH);
}

at::Tensor ForwardRoom::gate_up(const ExpertChunk& chunk) const {
  return output.gate_up_RJ.defined() ? output.gate_up_RJ.narrow(0, chunk.begin, chunk.rows)
                                     : gate_up_buffer_.narrow(0, 0, chunk.rows);
}

at::Tensor of_expert(const at::Tensor& own_LXY, const at::Tensor& guest_GXY, int64_t place) {
  const int64_t own = own_LXY.size(0);
  return place < own ? own_LXY[place] : guest_GXY[place - own];
}

ExpertBiases biases_of(const ExpertWeights& weights, const ExpertChunk& chunk) {
  if (!weights.gate_up_bias_LJ.defined()) return {};
  return {of_expert(weights.gate_up_bias_LJ, weights.guest_gate_up_bias_GJ, chunk.expert).unsqueeze(0),
          of_expert(weights.down_bias_LH, weights.guest_down_bias_GH, chunk.expert).unsqueeze(0)};
}

void ChunkGradients::write_zeros() const {
  for (const Gradient& gradient : {gate_up, down, gate_up_bias, down_bias})
    if (gradient.tensor.defined() && !gradient.accumulate) gradient.tensor.zero_();
}

ChunkGradients gradients_of(const ExpertGradients& gradients, const ExpertChunk& chunk) {
  const auto of = [&](const Gradient& own, const Gradient& guest) -> Gradient {
    if (!own.tensor.defined()) return {};
    const bool is_own = chunk.expert < own.tensor.size(0);
    return {of_expert(own.tensor, guest.tensor, chunk.expert),
            (is_own ? own : guest).accumulate || !chunk.first_of_expert};
  };
  ChunkGradients found{of(gradients.gate_up_LJH, gradients.guest_gate_up_GJH),
                       of(gradients.down_LHI, gradients.guest_down_GHI),
                       of(gradients.gate_up_bias_LJ, gradients.guest_gate_up_bias_GJ),
                       of(gradients.down_bias_LH, gradients.guest_down_bias_GH)};
  for (Gradient* bias : {&found.gate_up_bias, &found.down_bias})
    if (bias->tensor.defined()) bias->tensor = bias->tensor.unsqueeze(0);
  return found;
}

}  // namespace conclave
