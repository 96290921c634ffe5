#include "kernels/swiglu.h"

#include "kernel_benchmark.h"

namespace conclave {
namespace {

constexpr int64_t intermediate = 1792;

using Forward = decltype(swiglu_forward);
void forward(benchmark::State& state, Forward* op, at::ScalarType dtype) {
  const at::Tensor gate_up = random_tensor({tokens, 2 * intermediate}, dtype), weight = at::rand({tokens});
  const at::Tensor out = at::empty({tokens, intermediate}, gate_up.options());
  measure(state, bytes_of({gate_up, out}), [&] { op(out, gate_up, weight); });
}
const bool added_forward = add("swiglu_forward", forward, swiglu_forward, reference::swiglu_forward);

using Backward = decltype(swiglu_backward);
void backward(benchmark::State& state, Backward* op, at::ScalarType dtype) {
  const at::Tensor gate_up = random_tensor({tokens, 2 * intermediate}, dtype), weight = at::rand({tokens});
  const at::Tensor grad_out = random_tensor({tokens, intermediate}, dtype), activation = at::empty_like(grad_out);
  const at::Tensor grad_gate_up = at::empty_like(gate_up), grad_weight = at::empty_like(weight);
  measure(state, bytes_of({gate_up, grad_out, grad_gate_up, activation}),
          [&] { op(grad_gate_up, activation, grad_weight, grad_out, gate_up, weight); });
}
const bool added_backward = add("swiglu_backward", backward, swiglu_backward, reference::swiglu_backward);

}  // namespace
}  // namespace conclave
