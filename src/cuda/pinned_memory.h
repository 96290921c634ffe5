// Memory of the host that a device copies from and to at full speed.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave::cuda {

// uint8 [bytes], freed with the tensor. ATen's own would be the next power of two, and kept.
at::Tensor pinned_memory(int64_t bytes);

}  // namespace conclave::cuda
