// Our own kernels as the entries of src/kernels call them.
#pragma once

#include "kernels/kernels.h"

namespace conclave::cuda {

extern const Kernels kernel_table;

}  // namespace conclave::cuda
