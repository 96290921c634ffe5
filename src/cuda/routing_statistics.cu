// What balancing needs of a rank's tokens: counts of choices, sums of probabilities, of logsumexp^2 and of the highest
// probabilities, in one pass over blocks of tokens whose sums are then added in order.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

constexpr int block_tokens = 128;  // and the threads of a block: each has a token, then experts

__global__ void block_statistics_kernel(double* partial, const float* score_TE, const float* logsumexp_T,
                                        const int32_t* expert_TK, RouterShape shape) {
  __shared__ double divisor[block_tokens];
  const int64_t experts = shape.experts, columns = 2 * experts + 2;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * block_tokens;
  const int64_t end = begin + block_tokens < shape.tokens ? begin + block_tokens : shape.tokens;
  double* sums = partial + blockIdx.x * columns;

  const int64_t token = begin + threadIdx.x;
  double squares = 0, highest = 0;
  if (token < end) {
    const float* score = score_TE + token * experts;
    float best = score[0];
    double sum = 0;
    for (int64_t e = 0; e < experts; ++e) {
      best = score[e] > best ? score[e] : best;
      sum += score[e];
    }
    divisor[threadIdx.x] = shape.sigmoid ? sum : 1.0;
    highest = best / divisor[threadIdx.x];
    squares = static_cast<double>(logsumexp_T[token]) * logsumexp_T[token];
  }
  squares = block_reduce(squares, Sum{});
  highest = block_reduce(highest, Sum{});
  if (threadIdx.x == 0) {
    sums[2 * experts] = squares;
    sums[2 * experts + 1] = highest;
  }
  for (int64_t e = threadIdx.x; e < experts; e += blockDim.x) {
    double sum = 0;
    for (int64_t t = begin; t < end; ++t) sum += score_TE[t * experts + e] / divisor[t - begin];
    int32_t count = 0;
    for (int64_t choice = begin * shape.top_k; choice < end * shape.top_k; ++choice)
      count += expert_TK[choice] == e ? 1 : 0;
    sums[e] = count;
    sums[experts + e] = sum;
  }
  for (int64_t choice = begin * shape.top_k + threadIdx.x; choice < end * shape.top_k; choice += blockDim.x)
    device_check(expert_TK[choice] >= 0 && expert_TK[choice] < experts);
}

__global__ void add_blocks_kernel(double* statistics, const double* partial, int64_t blocks, int64_t columns) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  double sum = 0;
  for (int64_t block = 0; block < blocks; ++block) sum += partial[block * columns + column];
  statistics[column] = sum;
}

}  // namespace

int64_t routing_statistics_blocks(int64_t tokens) {
  return divided_up(tokens, block_tokens);
}

void routing_statistics(Stream stream, double* statistics, double* partial, const float* score, const float* logsumexp,
                        const int32_t* expert, const RouterShape& shape) {
  const int64_t blocks = routing_statistics_blocks(shape.tokens), columns = 2 * shape.experts + 2;
  launch(stream, {.blocks = blocks, .threads = block_tokens}, block_statistics_kernel, partial, score, logsumexp,
         expert, shape);
  const int threads = threads_for(columns);
  launch(stream, {.blocks = divided_up(columns, threads), .threads = threads}, add_blocks_kernel, statistics, partial,
         blocks, columns);
}

}  // namespace conclave::cuda
