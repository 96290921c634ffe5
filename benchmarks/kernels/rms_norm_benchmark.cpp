#include "kernels/rms_norm.h"

#include "kernel_benchmark.h"

namespace conclave {
namespace {

constexpr int64_t hidden = 1024;

using Forward = decltype(rms_norm_forward);
void forward(benchmark::State& state, Forward* op, at::ScalarType dtype) {
  const at::Tensor x = random_tensor({tokens, hidden}, dtype), weight = random_tensor({hidden}, dtype);
  const at::Tensor y = at::empty_like(x), rstd = at::empty({tokens});
  measure(state, bytes_of({x, y}), [&] { op(y, rstd, x, weight, 1e-5); });
}
const bool added_forward = add("rms_norm_forward", forward, rms_norm_forward, reference::rms_norm_forward);

using Backward = decltype(rms_norm_backward);
void backward(benchmark::State& state, Backward* op, at::ScalarType dtype) {
  const at::Tensor x = random_tensor({tokens, hidden}, dtype), weight = random_tensor({hidden}, dtype);
  const at::Tensor grad_y = random_tensor({tokens, hidden}, dtype), grad_x = at::zeros_like(x);
  const at::Tensor rstd = at::ones({tokens}), grad_weight = at::zeros({hidden});
  measure(state, bytes_of({x, grad_y, grad_x, grad_x}), [&] { op(grad_x, grad_weight, grad_y, x, rstd, weight); });
}
const bool added_backward = add("rms_norm_backward", backward, rms_norm_backward, reference::rms_norm_backward);

}  // namespace
}  // namespace conclave
