#include "kernels/router.h"

#include "kernel_benchmark.h"

namespace conclave {
namespace {

using Route = decltype(route);
void forward(benchmark::State& state, Route* op, at::ScalarType dtype) {
  const at::Tensor logits = random_tensor({tokens, 8}, dtype);
  measure(state, bytes_of({logits}), [&] { benchmark::DoNotOptimize(op(logits, 2)); });
}
const bool added = add("route", forward, route, reference::route);

}  // namespace
}  // namespace conclave
