// Which dtype a run computes in, chosen from what the hardware has.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "config/precision_section.h"
#include "device/cuda_plugin.h"

namespace conclave {

// `automatic`: bf16 on CUDA and on CPUs with AVX512-bf16 or AMX (elsewhere bf16 products are far slower than fp32),
// else fp32. Asking for bf16 on a CPU without either is a UserError.
at::ScalarType compute_dtype(Precision precision, at::Device device);

// fp8 products begin and end in bf16 and need a GPU of compute capability 9.0; asking for them elsewhere is a
// UserError. `chip`: of the GPU that the run computes on; none: it computes on the CPU.
void check_expert_precision(ExpertPrecision precision, const std::optional<GpuChip>& chip);

// "fp32" or "bf16".
const char* precision_name(at::ScalarType dtype);

// Operations per second that one rank's matrix products reach here, measured in a fraction of a second: what model
// FLOPs utilization refers to.
double measure_product_rate(at::ScalarType dtype, at::Device device);

}  // namespace conclave
