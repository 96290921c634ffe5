// Products of fp8 matrices on the device; arguments as in kernels/fp8_product.h, already checked. Sizes are multiples
// of 16.
#pragma once

#include "kernels/fp8_quantize.h"

namespace conclave::cuda {

void fp8_product(at::Tensor out_XY, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate);

}  // namespace conclave::cuda
