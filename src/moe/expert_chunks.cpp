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
  const int64_t width = weights.gate_up_LJH.size(1), most = most_rows(chunks);
  if (pre_activation == PreActivation::kept) {
    MemoryScope scope(MemoryCategory::activations);
    output.gate_up_RJ = at::empty({rows.row_RH.size(0), width}, options);
  } else {
    gate_up_buffer_ = at::empty({most, width}, options);
  }
  activation_buffer_ = at::empty({most, weights.down_LHI.size(2)}, options);
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

Gradient gradient_of(const Gradient& own_LXY, const Gradient& guest_GXY, const ExpertChunk& chunk) {
  if (!own_LXY.tensor.defined()) return {};
  const bool is_own = chunk.expert < own_LXY.tensor.size(0);
  return {of_expert(own_LXY.tensor, guest_GXY.tensor, chunk.expert),
          (is_own ? own_LXY : guest_GXY).accumulate || !chunk.first_of_expert};
}

}  // namespace conclave
