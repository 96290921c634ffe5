#include "kernels/cross_entropy.h"

#include "kernel_benchmark.h"

namespace conclave {
namespace {

// The logits turn into gradients, so later rounds run on small numbers; the work is the same.
using Gradient = decltype(cross_entropy_with_gradient_);
void gradient(benchmark::State& state, Gradient* op, at::ScalarType dtype) {
  const int64_t chunk = 512, vocabulary = 32000;
  const at::Tensor logits = random_tensor({chunk, vocabulary}, dtype),
                   targets = at::randint(vocabulary, {chunk}, at::kLong);
  measure(state, bytes_of({logits, logits}), [&] { benchmark::DoNotOptimize(op(logits, targets, 1.0)); });
}
const bool added =
    add("cross_entropy_with_gradient", gradient, cross_entropy_with_gradient_, reference::cross_entropy_with_gradient_);

}  // namespace
}  // namespace conclave
