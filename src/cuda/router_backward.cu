// The router's backward pass, by the formulas of its reference. A warp has a token, and the gradients of its scores in
// shared memory.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

template <class T>
__global__ void route_backward_kernel(T* grad_logits_TE, const float* score_TE, const float* logsumexp_T,
                                      const int32_t* expert_TK, const float* weight_TK, const float* grad_weight_TK,
                                      const float* probability_gradient, float z_coefficient, RouterShape shape) {
  const int64_t warps = blockDim.x / warp_size, warp = threadIdx.x / warp_size;
  const int64_t token = blockIdx.x * warps + warp;
  if (token >= shape.tokens) return;
  const int64_t experts = shape.experts;
  float* grad_score = shared_memory<float>() + warp * experts;
  const float* score = score_TE + token * experts;
  const int32_t* expert = expert_TK + token * shape.top_k;
  const float* weight = weight_TK + token * shape.top_k;
  const float* grad_weight = grad_weight_TK + token * shape.top_k;

  // A sigmoid's probabilities are its scores over their sum; a softmax's are the scores.
  float sum = 1, dot = 0;
  if (shape.sigmoid && probability_gradient != nullptr) {
    float own = 0;
    for (int64_t e = lane(); e < experts; e += warp_size) own += score[e];
    sum = warp_reduce(own, Sum{});
    own = 0;
    for (int64_t e = lane(); e < experts; e += warp_size) own += probability_gradient[e] * score[e] / sum;
    dot = warp_reduce(own, Sum{});
  }
  for (int64_t e = lane(); e < experts; e += warp_size)
    grad_score[e] = probability_gradient != nullptr ? (probability_gradient[e] - dot) / sum : 0.0f;

  float chosen_sum = 1, mean_grad = 0;
  if (shape.renormalize) {
    chosen_sum = 0;
    for (int64_t k = 0; k < shape.top_k; ++k) {
      chosen_sum += score[expert[k]];
      mean_grad += grad_weight[k] * weight[k];
    }
  }
  __syncwarp();
  // A token's experts are distinct: no two lanes write one score's gradient.
  for (int64_t k = lane(); k < shape.top_k; k += warp_size) {
    device_check(expert[k] >= 0 && expert[k] < experts);
    grad_score[expert[k]] += (grad_weight[k] * shape.scale - mean_grad) / chosen_sum;
  }
  __syncwarp();

  T* out = grad_logits_TE + token * experts;
  if (shape.sigmoid) {
    for (int64_t e = lane(); e < experts; e += warp_size)
      out[e] = narrowed<T>(grad_score[e] * score[e] * (1 - score[e]));
    return;
  }
  float own = 0;
  for (int64_t e = lane(); e < experts; e += warp_size) own += grad_score[e] * score[e];
  const float mean = warp_reduce(own, Sum{});
  const float through_logsumexp = 2 * z_coefficient * logsumexp_T[token];
  for (int64_t e = lane(); e < experts; e += warp_size)
    out[e] = narrowed<T>(score[e] * (grad_score[e] - mean + through_logsumexp));
}

}  // namespace

void route_backward(Stream stream, Element element, void* grad_logits, const float* score, const float* logsumexp,
                    const int32_t* expert, const float* weight, const float* grad_weight,
                    const float* probability_gradient, float z_coefficient, const RouterShape& shape) {
  const int64_t row_bytes = shape.experts * static_cast<int64_t>(sizeof(float));
  const int64_t fitting = shared_bytes_limit / row_bytes;
  const int warps = static_cast<int>(fitting < 4 ? fitting : 4);
  const Grid grid{
      .blocks = divided_up(shape.tokens, warps), .threads = warps * warp_size, .shared_bytes = warps * row_bytes};
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    launch(stream, grid, route_backward_kernel<T>, static_cast<T*>(grad_logits), score, logsumexp, expert, weight,
           grad_weight, probability_gradient, z_coefficient, shape);
  });
}

}  // namespace conclave::cuda
