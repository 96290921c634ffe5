// Our own kernels as the entries of src/kernels call them.
#pragma once

#include "kernels/cuda_kernels.h"

namespace conclave::cuda {

extern const CudaKernels kernel_table;

}  // namespace conclave::cuda
