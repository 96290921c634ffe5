// Kernels of experts beside their products.
#pragma once

#include "kernels/kernels.h"

namespace conclave::cuda {

void add_expert_calls(Kernels& table);

}  // namespace conclave::cuda
