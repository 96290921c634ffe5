// What the benchmarks of the kernels share. Each op runs as the fast path and as the reference, in fp32 and bf16, on
// data larger than the caches of a core; the rate counts each byte that must be read or written once, to hold against
// `copy`. Threads: OMP_NUM_THREADS.
#pragma once

#include <ATen/ATen.h>
#include <benchmark/benchmark.h>

namespace conclave {

constexpr int64_t tokens = 4096;

inline at::Tensor random_tensor(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  return at::randn(sizes).to(dtype);
}

inline int64_t bytes_of(std::initializer_list<at::Tensor> tensors) {
  int64_t bytes = 0;
  for (const at::Tensor& tensor : tensors) bytes += tensor.numel() * static_cast<int64_t>(tensor.element_size());
  return bytes;
}

// Times `op`, which moves `bytes` bytes at the least.
template <class F>
void measure(benchmark::State& state, int64_t bytes, const F& op) {
  op();  // first touch of every page
  for (auto _ : state) op();
  state.SetBytesProcessed(state.iterations() * bytes);
}

// Registers `run(state, op, dtype)` for the fast path and the reference, in fp32 and bf16.
template <class Op>
bool add(const std::string& name, void (*run)(benchmark::State&, Op*, at::ScalarType), Op* fast, Op* reference) {
  for (const auto& [dtype, of_dtype] : {std::pair(at::kFloat, "/fp32"), std::pair(at::kBFloat16, "/bf16")}) {
    for (const auto& [op, form] : {std::pair(fast, "/fast"), std::pair(reference, "/reference")}) {
      benchmark::RegisterBenchmark((name + of_dtype + form).c_str(), run, op, dtype)->Unit(benchmark::kMillisecond);
    }
  }
  return true;
}

}  // namespace conclave
