// The top-k router. A warp has a token, and the keys of its experts in shared memory.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

// A key that orders as the values do, of equal ones the lower index first; not-a-number comes last, and 0 is nobody's.
__device__ uint64_t key_of(float value, int64_t index) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 becomes 0
  const uint32_t ordered = value != value ? 0 : (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

__device__ int64_t index_of(uint64_t key) {
  return 0xffffffffu - static_cast<uint32_t>(key);
}

__device__ float value_of(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  if (ordered == 0) return NAN;
  return __uint_as_float((ordered >> 31) != 0 ? ordered & 0x7fffffffu : ~ordered);
}

struct Larger {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};

// The index of the largest of `count` keys, which becomes 0. All lanes of the warp call it.
__device__ int64_t take_largest(uint64_t* key, int64_t count) {
  uint64_t best = 0;
  for (int64_t i = lane(); i < count; i += warp_size) best = Larger{}(best, key[i]);
  best = warp_reduce(best, Larger{});
  const int64_t index = index_of(best);
  __syncwarp();
  if (lane() == 0) key[index] = 0;
  __syncwarp();
  return index;
}

// A group is as good as the sum of its best experts; the keys of all but the best groups become 0.
__device__ void drop_groups(uint64_t* key, uint64_t* group_key, const RouterShape& shape) {
  const int64_t size = shape.experts / shape.groups;
  for (int64_t group = lane(); group < shape.groups; group += warp_size) {
    uint64_t best = 0, second = 0;
    for (int64_t i = group * size; i < (group + 1) * size; ++i) {
      if (key[i] > best) {
        second = best;
        best = key[i];
      } else if (key[i] > second) {
        second = key[i];
      }
    }
    group_key[group] =
        key_of(size > 1 && shape.best_of_group > 1 ? value_of(best) + value_of(second) : value_of(best), group);
  }
  __syncwarp();
  for (int64_t kept = 0; kept < shape.top_groups; ++kept) take_largest(group_key, shape.groups);
  for (int64_t i = lane(); i < shape.experts; i += warp_size)
    if (group_key[i / size] != 0) key[i] = 0;
  __syncwarp();
}

template <class T>
__global__ void route_kernel(float* score_TE, float* logsumexp_T, int32_t* expert_TK, float* weight_TK,
                             const T* logits_TE, const float* bias, RouterShape shape, bool choose) {
  const int64_t warps = blockDim.x / warp_size, warp = threadIdx.x / warp_size;
  const int64_t token = blockIdx.x * warps + warp;
  if (token >= shape.tokens) return;
  const int64_t experts = shape.experts;
  uint64_t* key = shared_memory<uint64_t>() + warp * 2 * experts;
  const T* logit = logits_TE + token * experts;
  float* score = score_TE + token * experts;
  int32_t* expert = expert_TK + token * shape.top_k;

  float maximum = -INFINITY;
  for (int64_t e = lane(); e < experts; e += warp_size) maximum = fmaxf(maximum, widened(logit[e]));
  maximum = warp_reduce(maximum, Maximum{});
  float sum = 0;
  for (int64_t e = lane(); e < experts; e += warp_size) sum += expf(widened(logit[e]) - maximum);
  sum = warp_reduce(sum, Sum{});
  if (lane() == 0) logsumexp_T[token] = maximum + logf(sum);
  for (int64_t e = lane(); e < experts; e += warp_size) {
    const float x = widened(logit[e]);
    const float s = shape.sigmoid ? 1 / (1 + expf(-x)) : expf(x - maximum) / sum;
    score[e] = s;
    key[e] = key_of(bias != nullptr ? s + bias[e] : s, e);
  }
  __syncwarp();
  if (choose) {
    if (shape.top_groups < shape.groups) drop_groups(key, key + experts, shape);
    for (int64_t k = 0; k < shape.top_k; ++k) {
      const int64_t best = take_largest(key, experts);
      if (lane() == 0) expert[k] = static_cast<int32_t>(best);
    }
    __syncwarp();
  }

  // Every lane adds in the order of the choices, so that all have the same divisor.
  float divisor = shape.renormalize ? 0 : 1;
  for (int64_t k = 0; k < shape.top_k; ++k) {
    device_check(expert[k] >= 0 && expert[k] < experts);
    if (shape.renormalize) divisor += score[expert[k]];
  }
  for (int64_t k = lane(); k < shape.top_k; k += warp_size)
    weight_TK[token * shape.top_k + k] = score[expert[k]] / divisor * shape.scale;
}

// Warps of a block whose keys fit into its shared memory.
int warps_of(int64_t experts) {
  const int64_t fitting = shared_bytes_limit / (experts * 2 * static_cast<int64_t>(sizeof(uint64_t)));
  return static_cast<int>(fitting < 4 ? fitting : 4);
}

}  // namespace

int64_t router_experts_limit() {
  return shared_bytes_limit / (2 * static_cast<int64_t>(sizeof(uint64_t)));
}

void route(Stream stream, Element element, float* score, float* logsumexp, int32_t* expert, float* weight,
           const void* logits, const float* bias, const RouterShape& shape, bool choose) {
  const int warps = warps_of(shape.experts);
  const Grid grid{.blocks = divided_up(shape.tokens, warps),
                  .threads = warps * warp_size,
                  .shared_bytes = warps * shape.experts * 2 * static_cast<int64_t>(sizeof(uint64_t))};
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    launch(stream, grid, route_kernel<T>, score, logsumexp, expert, weight, static_cast<const T*>(logits), bias, shape,
           choose);
  });
}

}  // namespace conclave::cuda
