// A stable counting sort of choices by expert, without atomics: chunks of choices are counted, the counts of an expert
// before each chunk summed, then every chunk is placed. A thread has an expert and looks at all choices of the chunk,
// in order; all threads read the same one at a time, which shared memory serves at once.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

constexpr int64_t chunk_choices = 1024;

// Experts of the block's chunk, in shared memory; returns how many.
__device__ int load_chunk(int32_t* chunk, const int32_t* expert_of_choice, int64_t choices, int64_t experts) {
  const int64_t begin = blockIdx.x * chunk_choices;
  const int count = static_cast<int>(choices - begin < chunk_choices ? choices - begin : chunk_choices);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    chunk[i] = expert_of_choice[begin + i];
    device_check(chunk[i] >= -1 && chunk[i] < experts);
  }
  __syncthreads();
  return count;
}

// before [E, chunks]: here the choices of an expert in each chunk.
__global__ void count_choices_kernel(int32_t* before, const int32_t* expert_of_choice, int64_t choices,
                                     int64_t experts) {
  __shared__ int32_t chunk[chunk_choices];
  const int count = load_chunk(chunk, expert_of_choice, choices, experts);
  for (int64_t expert = threadIdx.x; expert < experts; expert += blockDim.x) {
    int32_t own = 0;
    for (int i = 0; i < count; ++i) own += chunk[i] == expert ? 1 : 0;
    before[expert * gridDim.x + blockIdx.x] = own;
  }
}

// One block. before becomes the row of an expert's first choice in each chunk.
__global__ void first_rows_kernel(int32_t* before, int64_t* count, int32_t* first_row, int64_t chunks,
                                  int64_t experts) {
  for (int64_t expert = threadIdx.x; expert < experts; expert += blockDim.x) {
    int64_t sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += before[expert * chunks + chunk];
    count[expert] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t row = 0;
    for (int64_t expert = 0; expert < experts; ++expert) {
      first_row[expert] = row;
      row += static_cast<int32_t>(count[expert]);
    }
  }
  __syncthreads();
  for (int64_t expert = threadIdx.x; expert < experts; expert += blockDim.x) {
    int32_t row = first_row[expert];
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int32_t own = before[expert * chunks + chunk];
      before[expert * chunks + chunk] = row;
      row += own;
    }
  }
}

__global__ void place_choices_kernel(int32_t* choice_of_row, int32_t* row_of_choice, const int32_t* before,
                                     const int32_t* expert_of_choice, int64_t choices, int64_t experts) {
  __shared__ int32_t chunk[chunk_choices];
  const int count = load_chunk(chunk, expert_of_choice, choices, experts);
  const int64_t begin = blockIdx.x * chunk_choices;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    if (chunk[i] < 0) row_of_choice[begin + i] = -1;
  for (int64_t expert = threadIdx.x; expert < experts; expert += blockDim.x) {
    int32_t row = before[expert * gridDim.x + blockIdx.x];
    for (int i = 0; i < count; ++i) {
      if (chunk[i] != expert) continue;
      choice_of_row[row] = static_cast<int32_t>(begin + i);
      row_of_choice[begin + i] = row++;
    }
  }
}

}  // namespace

int64_t expert_order_scratch(int64_t choices, int64_t experts) {
  return experts * (divided_up(choices, chunk_choices) + 1);
}

void order_by_expert(Stream stream, int32_t* choice_of_row, int32_t* row_of_choice, int64_t* count, int32_t* scratch,
                     const int32_t* expert_of_choice, int64_t choices, int64_t experts) {
  const int64_t chunks = divided_up(choices, chunk_choices);
  int32_t* first_row = scratch;
  int32_t* before = scratch + experts;
  const Grid grid{.blocks = chunks, .threads = threads_for(chunk_choices)};
  launch(stream, grid, count_choices_kernel, before, expert_of_choice, choices, experts);
  launch(stream, {.blocks = 1, .threads = threads_for(experts)}, first_rows_kernel, before, count, first_row, chunks,
         experts);
  launch(stream, grid, place_choices_kernel, choice_of_row, row_of_choice, before, expert_of_choice, choices, experts);
}

}  // namespace conclave::cuda
