#include "kernels/embedding.h"

#include "kernel_benchmark.h"

namespace conclave {
namespace {

using Backward = decltype(embedding_backward);
void backward(benchmark::State& state, Backward* op, at::ScalarType dtype) {
  const int64_t hidden = 1024, vocabulary = 8000;
  const at::Tensor grad_out = random_tensor({tokens, hidden}, dtype), grad_table = at::zeros({vocabulary, hidden});
  const at::Tensor index = at::randint(vocabulary, {tokens}, at::kLong);
  const int64_t added = 2 * tokens * hidden * static_cast<int64_t>(sizeof(float));
  measure(state, bytes_of({grad_out}) + added, [&] { op(grad_table, grad_out, index); });
}
const bool added = add("embedding_backward", backward, embedding_backward, reference::embedding_backward);

}  // namespace
}  // namespace conclave
