// Rotary position embedding (Su et al., "RoFormer", 2021): pairs of a head's dims turn by angles that grow with the
// position.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

// How frequencies are changed for sequences longer than those a model was first trained on, by Transformers' names.
enum class RotaryScaling {
  none,
  linear,  // all divided by the factor
  llama3,  // the low ones divided, the high ones kept, those between interpolated
  yarn,    // the same by dims instead of frequencies (Peng et al., 2023), and cosines and sines times attention_factor
};

struct RotaryOptions {
  int64_t dims = 0;  // of each head, the first ones: the others do not turn; even
  double theta = 10000.0;
  bool interleaved = false;  // dims 2j and 2j + 1 turn together; else j and j + dims / 2
  RotaryScaling scaling = RotaryScaling::none;
  double factor = 1.0;
  double original_positions = 0;                                   // the length of those first sequences (llama3, yarn)
  double low_frequency_factor = 1.0, high_frequency_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;                        // yarn: turns within the original length
  bool truncate = true;                                            // yarn: the dims of these turns, to whole ones
  double attention_factor = 1.0;                                   // yarn
};

struct RotaryTable {
  at::Tensor cos_SD;  // fp32 [S, dims / 2]
  at::Tensor sin_SD;  // fp32 [S, dims / 2]
  bool interleaved = false;
  at::Tensor position_T = {};  // int32 [T]: of each row, below S; undefined: row t has position t % S

  int64_t dims() const { return 2 * cos_SD.size(1); }
};

// Angles of positions 0..S-1: position * theta^(-2j/dims), j < dims/2, scaled; computed as Transformers does (inverse
// frequencies and angles in fp32).
RotaryTable rotary_table(int64_t sequence_length, const RotaryOptions& options, at::Device device);

// Turns, in place, the first table.dims() dims of `heads` heads in every row of rows [T, any]. Heads lie head_dim
// apart, rows any distance. fp32 or bf16.
void rotary_forward_(at::Tensor rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table);

// The gradient's way back: angles turn the other way.
void rotary_backward_(at::Tensor grad_rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table);

namespace reference {
RotaryTable rotary_table(int64_t sequence_length, const RotaryOptions& options, at::Device device);
void rotary_forward_(at::Tensor rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table);
void rotary_backward_(at::Tensor grad_rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table);
}  // namespace reference

}  // namespace conclave
