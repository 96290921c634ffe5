// Rotary position embedding (Su et al., "RoFormer", 2021) in the split-halves form of Hugging Face: dims j and j + D/2
// of a head turn together.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

struct RotaryTable {
  at::Tensor cos_SD;  // fp32 [S, D/2]
  at::Tensor sin_SD;  // fp32 [S, D/2]
};

// Angles of positions 0..S-1: position * theta^(-2j/D), j < D/2, computed as Transformers does (inverse frequencies and
// angles in fp32).
RotaryTable rotary_table(int64_t sequence_length, int64_t head_dim, double theta, at::Device device);

// Rotates, in place, the first `heads` heads of every row of qkv [T, any >= heads * D]; row t has position t % S. fp32
// or bf16.
void rotary_forward_(at::Tensor qkv_TN, int64_t heads, int64_t head_dim, const RotaryTable& table);

// The gradient's way back: the inverse rotation.
void rotary_backward_(at::Tensor grad_qkv_TN, int64_t heads, int64_t head_dim, const RotaryTable& table);

namespace reference {
RotaryTable rotary_table(int64_t sequence_length, int64_t head_dim, double theta, at::Device device);
void rotary_forward_(at::Tensor qkv_TN, int64_t heads, int64_t head_dim, const RotaryTable& table);
void rotary_backward_(at::Tensor grad_qkv_TN, int64_t heads, int64_t head_dim, const RotaryTable& table);
}  // namespace reference

}  // namespace conclave
