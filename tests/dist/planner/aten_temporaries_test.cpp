// What ATen's forms of the operations hold beside their results, counted on the CPU, where the same operators run.
// Oracle: the counting allocator. Tolerance 5 %: vectors of one element a row are not counted in the constants; 15 %
// for attention.
#include "planner/aten_temporaries.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/permute.h"
#include "kernels/rms_norm.h"
#include "kernels/swiglu.h"
#include "memory/memory_category.h"

namespace conclave {
namespace {

const bool counting = (install_counting_allocator(), true);

template <class Run>
void expect_temporaries(const char* what, double planned, int64_t elements, const Run& run, double tolerance = 0.05) {
  const int64_t before = memory_report().now.total;
  reset_memory_peaks();
  run();
  const double counted = static_cast<double>(memory_report().peak_of.total - before) / (4.0 * elements);
  EXPECT_NEAR(counted, planned, tolerance * planned) << what;
}

TEST(AtenTemporaries, are_as_many_as_planned) {
  constexpr int64_t rows = 256, hidden = 512, intermediate = 768, vocabulary = 4000;
  const auto bf16 = [](at::IntArrayRef sizes) { return at::randn(sizes).to(at::kBFloat16); };

  const at::Tensor gate_up = bf16({rows, 2 * intermediate}), active = bf16({rows, intermediate});
  const at::Tensor weight = at::rand({rows}), grad_weight = at::empty({rows});
  expect_temporaries("swiglu_forward", aten_temporaries::swiglu_forward, active.numel(),
                     [&] { reference::swiglu_forward(active, gate_up, weight); });
  expect_temporaries("swiglu_backward", aten_temporaries::swiglu_backward, active.numel(),
                     [&] { reference::swiglu_backward(gate_up, active, grad_weight, active, gate_up, weight); });

  const at::Tensor logits = bf16({rows, vocabulary}), targets = at::randint(vocabulary, {rows}, at::kLong);
  expect_temporaries("cross_entropy_gradient", aten_temporaries::cross_entropy_gradient, logits.numel(),
                     [&] { reference::cross_entropy_with_gradient_(logits, targets, 1.0); });

  const at::Tensor x = bf16({rows, hidden}), y = bf16({rows, hidden}), norm = bf16({hidden});
  const at::Tensor rstd = at::rand({rows}), grad_norm = at::zeros({hidden});
  expect_temporaries("rms_norm_forward", aten_temporaries::rms_norm_forward, x.numel(),
                     [&] { reference::rms_norm_forward(y, rstd, x, norm, 1e-5); });
  expect_temporaries("rms_norm_backward", aten_temporaries::rms_norm_backward, x.numel(),
                     [&] { reference::rms_norm_backward(y, grad_norm, x, x, rstd, norm); });

  const at::Tensor sent = bf16({2 * rows, hidden});
  const at::Tensor row_of_choice = at::arange(2 * rows, at::kInt).view({rows, 2});
  expect_temporaries("combine_rows", aten_temporaries::combine_rows, x.numel(),
                     [&] { reference::combine_rows(y, x, sent, row_of_choice); });

  // Queries, keys and values are not counted: a sixteenth of the scores each.
  const AttentionShape shape{.batch = 1, .sequence = 256, .heads = 4, .kv_heads = 4, .head_dim = 16, .window = {}};
  const at::Tensor qkv = at::randn({256, 3 * 64}), out = at::randn({256, 64}), logsumexp = at::randn({1, 4, 256});
  const int64_t scores = 4 * 256 * 256;
  expect_temporaries(
      "attention_forward", aten_temporaries::attention_forward, scores,
      [&] { reference::attention_forward(out, logsumexp, qkv, shape); }, 0.15);
  expect_temporaries(
      "attention_backward", aten_temporaries::attention_backward, scores,
      [&] { reference::attention_backward(qkv, out, out, logsumexp, qkv, shape); }, 0.15);

  const at::Tensor parameter = at::rand({1 << 18}), mean = at::rand({1 << 18}), square = at::rand({1 << 18});
  const at::Tensor gradient = at::rand({1 << 18});
  expect_temporaries("adamw_step", aten_temporaries::adamw_step, parameter.numel(),
                     [&] { reference::adamw_step(parameter, mean, square, gradient, {.lr = 1e-3}); });
}

}  // namespace
}  // namespace conclave
