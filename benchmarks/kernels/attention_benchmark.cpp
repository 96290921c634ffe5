#include "kernels/attention.h"

#include <string>
#include <vector>

#include "kernel_benchmark.h"

namespace conclave {
namespace {

const AttentionShape shape{.batch = 2, .sequence = 512, .heads = 8, .kv_heads = 2, .head_dim = 64, .window = {}};

// A long sequence, and the same as documents that do not see each other.
const AttentionShape long_shape{.batch = 1, .sequence = 4096, .heads = 8, .kv_heads = 2, .head_dim = 64};
AttentionShape with_documents(int64_t tokens_of_document) {
  std::vector<int64_t> ends;
  for (int64_t end = tokens_of_document; end < long_shape.sequence; end += tokens_of_document) ends.push_back(end);
  ends.push_back(long_shape.sequence);
  AttentionShape shape = long_shape;
  shape.documents =
      new Documents(documents_of(std::move(ends), long_shape.sequence, at::kCPU));  // as long as the program
  return shape;
}

struct Tensors {
  at::Tensor qkv, out, logsumexp, grad_out, grad_qkv;
};

Tensors make(at::ScalarType dtype, const AttentionShape& shape) {
  const int64_t rows = shape.batch * shape.sequence;
  const at::Tensor qkv = random_tensor({rows, (shape.heads + 2 * shape.kv_heads) * shape.head_dim}, dtype);
  const at::Tensor out = at::empty({rows, shape.heads * shape.head_dim}, qkv.options());
  return {qkv, out, at::empty({shape.batch, shape.heads, shape.sequence}), at::randn(out.sizes()).to(dtype),
          at::empty_like(qkv)};
}

using Forward = decltype(attention_forward);
void forward(benchmark::State& state, Forward* op, at::ScalarType dtype) {
  const Tensors t = make(dtype, shape);
  measure(state, bytes_of({t.qkv, t.out}), [&] { op(t.out, t.logsumexp, t.qkv, shape); });
}
const bool added_forward = add("attention_forward", forward, attention_forward, reference::attention_forward);

using Backward = decltype(attention_backward);
void backward(benchmark::State& state, Backward* op, at::ScalarType dtype) {
  const Tensors t = make(dtype, shape);
  attention_forward(t.out, t.logsumexp, t.qkv, shape);
  measure(state, bytes_of({t.qkv, t.out, t.grad_out, t.grad_qkv}),
          [&] { op(t.grad_qkv, t.grad_out, t.out, t.logsumexp, t.qkv, shape); });
}
const bool added_backward = add("attention_backward", backward, attention_backward, reference::attention_backward);

void both_ways(benchmark::State& state, const AttentionShape& shape) {
  const Tensors t = make(at::kFloat, shape);
  measure(state, bytes_of({t.qkv, t.out, t.grad_out, t.grad_qkv}), [&] {
    attention_forward(t.out, t.logsumexp, t.qkv, shape);
    attention_backward(t.grad_qkv, t.grad_out, t.out, t.logsumexp, t.qkv, shape);
  });
}
const bool added_documents = [] {
  const auto row = [](const std::string& name, const AttentionShape& shape) {
    benchmark::RegisterBenchmark(("attention_of_4096/" + name).c_str(), both_ways, shape)
        ->Unit(benchmark::kMillisecond);
  };
  row("whole", long_shape);
  for (const int64_t tokens_of_document : {1024, 256, 64})
    row("documents_of_" + std::to_string(tokens_of_document), with_documents(tokens_of_document));
  return true;
}();

}  // namespace
}  // namespace conclave
