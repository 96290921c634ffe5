#include <cstring>

#include "kernel_benchmark.h"

namespace conclave {
namespace {

// What the machine can do: memcpy of 64 MB, read and written bytes both counted.
void copy(benchmark::State& state) {
  const at::Tensor from = random_tensor({1 << 24}), to = at::empty_like(from);
  measure(state, bytes_of({from, to}), [&] { std::memcpy(to.data_ptr(), from.data_ptr(), bytes_of({from})); });
}
BENCHMARK(copy)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace conclave
