// The matrix products of one training step of a job, alone: what a step could take if nothing but arithmetic and the
// optimizer's pass over its memory were left. PyTorch's own products, without Conclave's kernels around them; experts
// get equal shares of the rows, and queries see as many keys each as they do in the mean. Recomputation is not counted:
// it is a way of working.
#pragma once

#include <string>
#include <vector>

#include "step/parallel_job.h"

namespace conclave {

// One matrix product of the forward pass and the two of its backward pass.
struct TimedProduct {
  std::string name;
  int64_t rows = 0;  // of the input [rows, inner]
  int64_t inner = 0;
  int64_t columns = 0;  // of the output [rows, columns]
  int64_t times = 0;    // in a step of one rank
  // Of all its times in a step; medians, of the slowest rank.
  double forward = 0;
  double input_gradient = 0;
  double weight_gradient = 0;

  double seconds() const { return forward + input_gradient + weight_gradient; }
  double operations() const { return 6.0 * static_cast<double>(rows * inner * columns * times); }
};

struct ProductTimes {
  std::vector<TimedProduct> products;
  double copy_rate = 0;        // bytes per second, read and written, of a copy that fits no cache
  double optimizer_bytes = 0;  // that AdamW reads and writes in a step
  double seconds() const;
  double optimizer_seconds() const { return optimizer_bytes / copy_rate; }
};

// Collective: all ranks work at once, as in a step, since they share caches and memory. `repeats`: of each product.
ProductTimes time_products(ParallelJob& job, int64_t repeats);

}  // namespace conclave
