// Sums and maxima over ranks in a fixed order, so that the result does not depend on timing or threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>

#include "comm/communicator.h"

namespace conclave {

enum class Threads { one, all };  // all: ATen's; only from the thread that computes

// out[i] = parts[0][i] op parts[1][i] op ..., in that order, for count elements of `dtype`. bf16 is summed in fp32 and
// rounded once. The maximum of anything and NaN is NaN. `out` may be one of the parts. fp32, bf16, double, int64,
// int32, uint8 (modulo 256); others are an InvariantError.
void reduce_in_order(at::ScalarType dtype, void* out, std::span<const void* const> parts, int64_t count,
                     Reduction reduction, Threads threads);

}  // namespace conclave
