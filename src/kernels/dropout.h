// Dropout (Srivastava et al., JMLR 2014): elements become 0 with a probability, and the others grow, so that the mean
// stays. Which ones is a function of the seed, the stream and the element's place in its sample, whatever the layout.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace conclave {

struct Dropout {
  double probability = 0;
  uint64_t seed = 0;
  uint64_t stream = 0;  // of random numbers
  int64_t sequence = 0;
  const std::vector<int64_t>* sample_of_B = nullptr;  // names the draws
  int64_t first_row = 0;                              // of the rows, among B * sequence
};

// y [R,M] = x, dropped out; y may be x. The same bits every time, on every device: the host draws.
void dropout(at::Tensor y_RM, const at::Tensor& x_RM, const Dropout& options);

}  // namespace conclave
