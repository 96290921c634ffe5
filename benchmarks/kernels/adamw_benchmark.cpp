#include "kernels/adamw.h"

#include "kernel_benchmark.h"

namespace conclave {
namespace {

constexpr int64_t count = 8 << 20;

void adamw(benchmark::State& state, decltype(adamw_step)* op) {
  const at::Tensor parameter = random_tensor({count}), grad = random_tensor({count});
  const at::Tensor exp_avg = at::zeros({count}), exp_avg_sq = at::zeros({count});
  const AdamwStep numbers{.lr = 1e-3, .weight_decay = 0.1, .step = 10, .grad_scale = 0.5};
  measure(state, bytes_of({parameter, parameter, exp_avg, exp_avg, exp_avg_sq, exp_avg_sq, grad}),
          [&] { op(parameter, exp_avg, exp_avg_sq, grad, numbers); });
}
BENCHMARK_CAPTURE(adamw, fast, conclave::adamw_step)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(adamw, reference, reference::adamw_step)->Unit(benchmark::kMillisecond);

void sum_of_squares_of(benchmark::State& state, decltype(sum_of_squares)* op) {
  const at::Tensor x = random_tensor({count});
  measure(state, bytes_of({x}), [&] { benchmark::DoNotOptimize(op(x)); });
}
BENCHMARK_CAPTURE(sum_of_squares_of, fast, conclave::sum_of_squares)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(sum_of_squares_of, reference, reference::sum_of_squares)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace conclave
