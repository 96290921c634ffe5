// What kernels on paper are made of: tensors that take room, and passes over memory that take time (paper_pass.h).
#pragma once

#include <ATen/ATen.h>

#include "base/cuda_rules.h"
#include "device/paper_device.h"
#include "device/paper_pass.h"

namespace conclave::paper {

inline bool on_gpu() {
  return paper_device().machine().is_gpu;
}

inline at::Tensor room(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::empty(sizes, at::device(at::kMeta).dtype(dtype));
}

// Of a sum over rows: a partial one for each block of them (kernels/cpu.h, base/cuda_rules.h).
inline at::Tensor room_for_partial_sums(int64_t rows, const at::Tensor& sum_N) {
  const int64_t block = std::max<int64_t>(32, (rows + 63) / 64);
  return room({on_gpu() ? norm_blocks(rows) : (rows + block - 1) / block, sum_N.numel()}, sum_N.scalar_type());
}

}  // namespace conclave::paper
