#include "kernels/attention.h"

#include <cmath>

#include "attention_case.h"
#include "base/error.h"
#include "kernel_test.h"
#include "kernels/attention_sink.h"

namespace conclave {
namespace {

Results oracle(const at::Tensor& qkv, const at::Tensor& grad_out, const AttentionShape& shape) {
  const at::Tensor x = leaf(qkv);
  const auto [out, logsumexp] = textbook(x, shape, {});
  return {out, logsumexp, gradients(out, grad_out.to(at::kDouble), {x})[0], {}};
}

const std::vector<AttentionShape>& shapes() {
  static const std::vector<AttentionShape> values = {
      {1, 1, 1, 1, 8, {}},
      {2, 7, 4, 2, 16, {}},
      {3, 33, 6, 1, 40, {}},
      {1, 257, 8, 8, 64, {}},
      {2, 65, 3, 3, 6, {}},
      {1, 300, 4, 1, 32, {}},
      {2, 17, 4, 2, 16, 1},
      {2, 17, 4, 2, 16, 5},
      {1, 33, 4, 2, 16, 32},
      {1, 33, 4, 2, 16, 33},
      {1, 33, 4, 2, 16, 100},
      {2, 300, 4, 2, 16, 130},
      {1, 1300, 4, 2, 16, {}},
      {1, 401, 2, 1, 16, 7},
      {1, 600, 2, 1, 16, 200},
      {1, 1100, 2, 1, 8, 1000},
      {1, 256, 2, 1, 16, 128},
      // Values of another dim than keys, and other scales, as in latent attention.
      {2, 33, 3, 3, 24, {}, 0.3, 16},
      {1, 300, 4, 4, 48, {}, {}, 32},
      {2, 19, 4, 2, 6, 4, {}, 10},
      {1, 600, 2, 1, 40, {}, 0.1, 8},
      {3, 1, 2, 2, 12, {}, {}, 7},
  };
  return values;
}

// Oracle: autograd over the textbook's form in double. Tolerance: sums of S terms in double.
TEST(AttentionReference, equals_autograd) {
  for (const AttentionShape& shape : shapes()) {
    if (shape.sequence > 300) continue;
    SCOPED_TRACE(describe(shape));
    const at::Tensor qkv = random_tensor({tokens(shape), shape.packed_columns()}, at::kDouble);
    const at::Tensor grad_out = random_tensor({tokens(shape), shape.out_columns()}, at::kDouble);
    const Results expected = oracle(qkv, grad_out, shape);
    const Results actual = run(qkv, grad_out, shape, reference::attention_forward, reference::attention_backward);
    expect_close("out", actual.out, expected.out, {1e-12, 1e-13});
    expect_close("logsumexp", actual.logsumexp, expected.logsumexp, {1e-12, 1e-13});
    expect_close("grad_qkv", actual.grad_qkv, expected.grad_qkv, {1e-12, 1e-12});
  }
}

// Oracle: autograd over the textbook's form in double on the same inputs.
// Tolerances, fp32: scores sum D products (up to 20 in all), so an exponential errs by 40 eps or so (ATen's approximate
// one by 20 more), and outputs and gradients, sums of products with it, by as much of the tensor's scale. bf16: ATen's
// exponential of bf16 errs by up to 2^-13, and so does the logsumexp; probabilities and gradients of scores are rounded
// to bf16 between products, and key/value gradients added up in bf16: some 8 roundings, of the scale of the tensor.
TEST(Attention, equals_autograd) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const AttentionShape& shape : shapes()) {
      SCOPED_TRACE(describe(shape));
      const at::Tensor qkv = random_tensor({tokens(shape), shape.packed_columns()}, dtype);
      const at::Tensor grad_out = random_tensor({tokens(shape), shape.out_columns()}, dtype);
      const Results expected = oracle(qkv, grad_out, shape), actual = compute(qkv, grad_out, shape);
      const bool fp32 = dtype == at::kFloat;
      const auto of_scale = [](double relative, const at::Tensor& t) {
        return Tolerance{0, relative * t.abs().max().item<double>()};
      };
      expect_close("logsumexp", actual.logsumexp, expected.logsumexp, {0, fp32 ? 60 * eps_fp32 : 1.0 / (1 << 13)});
      expect_close("out", actual.out, expected.out, of_scale(fp32 ? 60 * eps_fp32 : 4 * rounding(dtype), expected.out));
      expect_close("grad_qkv", actual.grad_qkv, expected.grad_qkv,
                   of_scale(fp32 ? 60 * eps_fp32 : 8 * rounding(dtype), expected.grad_qkv));
    }
  }
}

// The backward pass adds to grad_sink.
Results run_with_sink(const at::Tensor& qkv, const at::Tensor& grad_out, const at::Tensor& sink, AttentionShape shape) {
  shape.sinks = true;
  Results r{garbage(grad_out.sizes(), qkv.scalar_type()), garbage({shape.batch, shape.heads, shape.sequence}),
            garbage(qkv.sizes(), qkv.scalar_type()), at::ones({shape.heads})};
  attention_forward(r.out, r.logsumexp, qkv, shape);
  sink_forward_(r.out, r.logsumexp, sink);
  attention_backward(r.grad_qkv, grad_out, r.out, r.logsumexp, qkv, shape);
  sink_backward(r.grad_sink, grad_out, r.out, r.logsumexp, sink);
  return r;
}

class Sink : public SimdTest {};

// Oracle: autograd over the textbook's form in double on the same inputs. Tolerances as above; out is rounded once
// more, and a sink's gradient sums a term of scale 5 of each row.
TEST_P(Sink, equals_autograd) {
  const std::vector<AttentionShape> with_sinks = {{1, 1, 1, 1, 8},       {0, 5, 2, 1, 8},
                                                  {2, 7, 4, 2, 16},      {2, 65, 6, 2, 24, 9},
                                                  {1, 300, 4, 4, 32, 1}, {1, 140, 2, 1, 40, 30, 0.2, 9}};
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const AttentionShape& shape : with_sinks) {
      SCOPED_TRACE(describe(shape));
      const at::Tensor qkv = random_tensor({tokens(shape), shape.packed_columns()}, dtype);
      const at::Tensor grad_out = random_tensor({tokens(shape), shape.out_columns()}, dtype);
      const at::Tensor sink = (2 * random_tensor({shape.heads})).to(dtype);
      const Results actual = run_with_sink(qkv, grad_out, sink, shape);
      if (shape.batch == 0) continue;
      const at::Tensor x = leaf(qkv), s = leaf(sink);
      const auto [out, logsumexp] = textbook(x, shape, s);
      const std::vector<at::Tensor> expected = gradients(out, grad_out.to(at::kDouble), {x, s});
      const bool fp32 = dtype == at::kFloat;
      const auto of_scale = [&](double roundings, const at::Tensor& t) {
        return Tolerance{0, (fp32 ? 60 * eps_fp32 : roundings * rounding(dtype)) * t.abs().max().item<double>()};
      };
      expect_close("logsumexp", actual.logsumexp, logsumexp, {0, fp32 ? 60 * eps_fp32 : 1.0 / (1 << 13)});
      expect_close("out", actual.out, out, of_scale(5, out));
      expect_close("grad_qkv", actual.grad_qkv, expected[0], of_scale(9, expected[0]));
      const double rows = static_cast<double>(tokens(shape)), scale = 5 * std::sqrt(rows * shape.value_dim());
      expect_close("grad_sink", actual.grad_sink, expected[1] + 1,
                   {0, (fp32 ? 60 * eps_fp32 : 5 * rounding(dtype)) * scale});
    }
}

TEST_P(Sink, gradient_does_not_depend_on_threads) {
  const AttentionShape shape{2, 300, 6, 2, 16, 140};
  const at::Tensor qkv = random_tensor({tokens(shape), shape.packed_columns()});
  const at::Tensor grad_out = random_tensor({tokens(shape), shape.out_columns()}), sink = random_tensor({6});
  expect_same_for_any_threads([&] {
    const Results r = run_with_sink(qkv, grad_out, sink, shape);
    return std::vector<at::Tensor>{r.out, r.logsumexp, r.grad_qkv, r.grad_sink};
  });
}

// A sink far above all scores leaves nothing, one far below changes nothing; neither overflows.
TEST_P(Sink, of_extreme_size_is_ordinary) {
  const AttentionShape shape{1, 5, 2, 1, 8};
  const at::Tensor qkv = random_tensor({5, shape.packed_columns()}), grad_out = random_tensor({5, 16});
  const Results r = run_with_sink(qkv, grad_out, at::tensor({1e4F, -1e4F}), shape);
  const Results without = compute(qkv, grad_out, shape);
  expect_close("out", r.out.narrow(1, 0, 8), at::zeros({5, 8}), {});
  expect_identical("out", r.out.narrow(1, 8, 8).contiguous(), without.out.narrow(1, 8, 8).contiguous());
  EXPECT_TRUE(r.grad_qkv.isfinite().all().item<bool>());
  expect_close("grad_sink", r.grad_sink, at::ones({2}), {});
}

CONCLAVE_SIMD_TESTS(Sink);

TEST(Attention, an_empty_batch_is_ordinary) {
  const AttentionShape shape{0, 9, 4, 2, 8, {}};
  const Results r = compute(at::empty({0, shape.packed_columns()}), at::empty({0, 32}), shape);
  EXPECT_EQ(r.grad_qkv.numel(), 0);
}

TEST(Attention, does_not_depend_on_threads) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const AttentionShape& shape : {AttentionShape{1, 300, 4, 1, 32, {}}, AttentionShape{2, 300, 6, 2, 16, 140},
                                        AttentionShape{1, 700, 1, 1, 64, {}}}) {
      SCOPED_TRACE(describe(shape));
      const at::Tensor qkv = random_tensor({tokens(shape), shape.packed_columns()}, dtype);
      const at::Tensor grad_out = random_tensor({tokens(shape), shape.out_columns()}, dtype);
      expect_same_for_any_threads([&] {
        const Results r = compute(qkv, grad_out, shape);
        return std::vector<at::Tensor>{r.out, r.logsumexp, r.grad_qkv};
      });
    }
  }
}

TEST(AttentionEntry, refuses_what_does_not_fit) {
  const AttentionShape shape{1, 4, 4, 2, 8, {}};
  at::Tensor out = at::zeros({4, 32}), logsumexp = at::zeros({1, 4, 4});
  EXPECT_THROW(attention_forward(out, logsumexp, at::zeros({4, 63}), shape), InvariantError);
  AttentionShape uneven = shape;
  uneven.kv_heads = 3;
  EXPECT_THROW(attention_forward(out, logsumexp, at::zeros({4, 80}), uneven), InvariantError);
  AttentionShape blind = shape;
  blind.window = 0;
  EXPECT_THROW(attention_forward(out, logsumexp, at::zeros({4, 64}), blind), InvariantError);
}

}  // namespace
}  // namespace conclave
