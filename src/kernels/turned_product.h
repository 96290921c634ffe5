// A product of few rows with a weight whose rows lie as they are stored: y = x w^T. Copying the weight's blocks
// transposed, as blocked_product does, costs more than the few rows' own sums. So the product is turned: y^T = w x^T,
// with the rows of x transposed and the sums transposed back. Each sum has the same terms in the same order: the same
// bits.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave::cpu {

// Whether it pays, and the operands fit its room. As blocked_product's arguments, none empty.
bool turns_product(const at::Tensor& a, const at::Tensor& b);

void turned_product(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate);

}  // namespace conclave::cpu
