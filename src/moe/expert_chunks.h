// How the experts' rows are gone through, one expert after the other, in chunks.
#pragma once

#include <vector>

#include "moe/experts.h"

namespace conclave {

// Rows of one expert that are computed at once.
struct ExpertChunk {
  int64_t expert = 0;
  int64_t begin = 0;  // among all rows
  int64_t rows = 0;
  bool first_of_expert = true;
};

// Of these rows. Every expert has one at least: without rows it still gets its gradient, zero.
std::vector<ExpertChunk> chunks_of(const at::Tensor& row_RH, const std::vector<int64_t>& rows_per_expert);

int64_t most_rows(const std::vector<ExpertChunk>& chunks);

// What a forward pass over chunks writes: its output, and room for what lies between the products.
struct ForwardRoom {
  ForwardRoom(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert, const ExpertWeights& weights,
              PreActivation pre_activation);

  // Of the chunk's rows. The pre-activation is the output's where that is kept.
  at::Tensor gate_up(const ExpertChunk& chunk) const;
  at::Tensor activation(const ExpertChunk& chunk) const { return activation_buffer_.narrow(0, 0, chunk.rows); }

  std::vector<ExpertChunk> chunks;
  ExpertOutput output;

 private:
  at::Tensor gate_up_buffer_, activation_buffer_;
};

// The matrices of the expert at a place among a rank's own and its guests.
at::Tensor of_expert(const at::Tensor& own_LXY, const at::Tensor& guest_GXY, int64_t place);

// The biases of the chunk's expert, [1,N]; undefined: it has none.
struct ExpertBiases {
  at::Tensor gate_up, down;
};
ExpertBiases biases_of(const ExpertWeights& weights, const ExpertChunk& chunk);

// Where the gradients of the chunk's expert go; those of biases as [1,N]. Without tensors where nobody wants them.
struct ChunkGradients {
  Gradient gate_up, down, gate_up_bias, down_bias;

  // Of an expert without rows.
  void write_zeros() const;
};
ChunkGradients gradients_of(const ExpertGradients& gradients, const ExpertChunk& chunk);

}  // namespace conclave
