// Sums over rows come in parts, one for each block that has some of the rows.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

__global__ void add_partial_sums_kernel(float* sum, const float* partial, int64_t blocks, int64_t columns) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  float total = sum[column];
  for (int64_t block = 0; block < blocks; ++block) total += partial[block * columns + column];
  sum[column] = total;
}

}  // namespace

void add_partial_sums(Stream stream, float* sum, const float* partial, int64_t blocks, int64_t columns) {
  constexpr int threads = 64;
  launch(stream, {.blocks = divided_up(columns, threads), .threads = threads}, add_partial_sums_kernel, sum, partial,
         blocks, columns);
}

}  // namespace conclave::cuda
