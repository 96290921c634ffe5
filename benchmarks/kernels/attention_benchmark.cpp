#include "kernels/attention.h"

#include "kernel_benchmark.h"

namespace conclave {
namespace {

const AttentionShape shape{.batch = 2, .sequence = 512, .heads = 8, .kv_heads = 2, .head_dim = 64, .window = {}};

struct Tensors {
  at::Tensor qkv, out, logsumexp, grad_out, grad_qkv;
};

Tensors make(at::ScalarType dtype) {
  const int64_t rows = shape.batch * shape.sequence;
  const at::Tensor qkv = random_tensor({rows, (shape.heads + 2 * shape.kv_heads) * shape.head_dim}, dtype);
  const at::Tensor out = at::empty({rows, shape.heads * shape.head_dim}, qkv.options());
  return {qkv, out, at::empty({shape.batch, shape.heads, shape.sequence}), at::randn(out.sizes()).to(dtype),
          at::empty_like(qkv)};
}

using Forward = decltype(attention_forward);
void forward(benchmark::State& state, Forward* op, at::ScalarType dtype) {
  const Tensors t = make(dtype);
  measure(state, bytes_of({t.qkv, t.out}), [&] { op(t.out, t.logsumexp, t.qkv, shape); });
}
const bool added_forward = add("attention_forward", forward, attention_forward, reference::attention_forward);

using Backward = decltype(attention_backward);
void backward(benchmark::State& state, Backward* op, at::ScalarType dtype) {
  const Tensors t = make(dtype);
  attention_forward(t.out, t.logsumexp, t.qkv, shape);
  measure(state, bytes_of({t.qkv, t.out, t.grad_out, t.grad_qkv}),
          [&] { op(t.grad_qkv, t.grad_out, t.out, t.logsumexp, t.qkv, shape); });
}
const bool added_backward = add("attention_backward", backward, attention_backward, reference::attention_backward);

}  // namespace
}  // namespace conclave
