// Temporaries of the operations that a GPU computes by ATen's operators (kernels/*_reference.cpp), where the CPU has a
// kernel that needs none: the most that are alive at once, in fp32 tensors of the shape named. For bf16 inputs; fp32
// ones need a little less. Counted in tests/dist/planner/aten_temporaries_test.cpp.
#pragma once

namespace conclave::aten_temporaries {

inline constexpr double swiglu_forward = 5.0;          // [R, I]
inline constexpr double swiglu_backward = 12.0;        // [R, I]
inline constexpr double cross_entropy_gradient = 3.0;  // [C, V]
inline constexpr double rms_norm_forward = 4.0;        // [T, H]
inline constexpr double rms_norm_backward = 7.0;       // [T, H]
inline constexpr double combine_rows = 6.0;            // [T, H], with two choices a token
inline constexpr double attention_forward = 3.0;       // [B, heads, S, S]; where there is no flash kernel
inline constexpr double attention_backward = 6.0;      // [B, heads, S, S]
inline constexpr double adamw_step = 3.0;              // [shard of one group]

}  // namespace conclave::aten_temporaries
