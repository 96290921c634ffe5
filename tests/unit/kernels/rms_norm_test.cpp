#include "kernels/rms_norm.h"

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

constexpr double norm_eps = 1e-5;

struct Case {
  at::Tensor x, weight, grad_y, grad_x, grad_weight;  // the last two: what is there before backward adds
};

Case make_case(int64_t tokens, int64_t hidden, at::ScalarType dtype) {
  const at::ScalarType wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  return {random_tensor({tokens, hidden}, dtype), random_tensor({hidden}, dtype),
          random_tensor({tokens, hidden}, dtype), random_tensor({tokens, hidden}, dtype),
          random_tensor({hidden}, wide)};
}

Case in_double(const Case& c) {
  const auto d = [](const at::Tensor& t) { return t.to(at::kDouble); };
  return {d(c.x), d(c.weight), d(c.grad_y), d(c.grad_x), d(c.grad_weight)};
}

struct Results {
  at::Tensor y, rstd, grad_x, grad_weight;
};

template <class Forward, class Backward>
Results run(const Case& c, const Forward& forward, const Backward& backward) {
  Results r{garbage(c.x.sizes(), c.x.scalar_type()), garbage({c.x.size(0)}, c.grad_weight.scalar_type()),
            c.grad_x.clone(), c.grad_weight.clone()};
  forward(r.y, r.rstd, c.x, c.weight, norm_eps);
  backward(r.grad_x, r.grad_weight, c.grad_y, c.x, r.rstd, c.weight);
  return r;
}

Results compute(const Case& c) {
  return run(c, rms_norm_forward, rms_norm_backward);
}

void reference_backward(at::Tensor grad_x, at::Tensor grad_weight, const at::Tensor& grad_y, const at::Tensor& x,
                        const at::Tensor& rstd, const at::Tensor& weight) {
  reference::rms_norm_backward(grad_x, grad_weight, grad_y, x, rstd, weight);
}
Results reference_in_double(const Case& c) {
  return run(in_double(c), reference::rms_norm_forward, reference_backward);
}

// Oracle: autograd over the formula in double. Tolerance: a few roundings of double.
TEST(RmsNormReference, equals_autograd) {
  const Case c = make_case(6, 11, at::kDouble);
  const at::Tensor x = leaf(c.x), weight = leaf(c.weight);
  const at::Tensor y = weight * x / at::sqrt(x.pow(2).mean(1, true) + norm_eps);
  const std::vector<at::Tensor> grads = gradients(y, c.grad_y, {x, weight});
  const Results r = reference_in_double(c);
  expect_close("y", r.y, y, {1e-13, 0});
  expect_close("grad_x", r.grad_x, c.grad_x + grads[0], {1e-12, 1e-13});
  expect_close("grad_weight", r.grad_weight, c.grad_weight + grads[1], {1e-12, 1e-13});
}

class RmsNorm : public SimdTest {};

// Oracle: the reference in double. Tolerances: the sum of H squares in running vectors errs by at most (H / 4 + 8) eps
// relative, its root by half of that, and grad_x by as much of its largest terms (about 5 * 5); grad_weight sums T
// products of at most 5 * 5 in blocks. In bf16 y is rounded twice (Transformers casts before it multiplies), grad_x
// once more than its fp32 sum.
TEST_P(RmsNorm, equals_reference) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t tokens : {0, 1, 33, 65, 257}) {
      for (const int64_t hidden : {1, 7, 17, 64, 257}) {
        const Case c = make_case(tokens, hidden, dtype);
        const Results expected = reference_in_double(c), actual = compute(c);
        const double sums = (hidden / 4.0 + 8) * eps_fp32, stored = rounding(dtype);
        expect_close("rstd", actual.rstd, expected.rstd, {sums, 0});
        expect_close("y", actual.y, expected.y, {2.01 * stored + sums, 0});
        // In one dim y is the sign: the gradient is nothing but cancellation, of terms up to rstd * 25, rstd up to 316.
        const double largest = std::max(1.0, tokens == 0 ? 0.0 : expected.rstd.max().item<double>()) * 25;
        expect_close("grad_x", actual.grad_x, expected.grad_x, {stored, 4 * sums * largest});
        expect_close("grad_weight", actual.grad_weight, expected.grad_weight, {0, (tokens + 16) * eps_fp32 * 25});
      }
    }
  }
}

// A matrix inside longer rows, whose other elements are not a number.
at::Tensor within(int64_t rows, int64_t columns, int64_t before, int64_t behind, at::ScalarType dtype) {
  const at::Tensor room = at::full({rows, before + columns + behind}, NAN, dtype);
  return room.narrow(1, before, columns).copy_(random_tensor({rows, columns}, dtype));
}

// Heads of rows that lie apart, as the queries and keys of packed projections do: each normalized by itself, backward
// in place.
// Oracle: the reference in double on rows of one head. Tolerances as above.
TEST_P(RmsNorm, of_heads_equals_reference_of_rows) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const int64_t tokens : {0, 1, 40})
      for (const int64_t heads : {1, 2, 7})
        for (const int64_t hidden : {1, 6, 16, 64, 128, 264}) {
          const int64_t columns = heads * hidden;
          for (const auto& [before, behind] : std::vector<std::pair<int64_t, int64_t>>{{0, 0}, {8, 16}, {1, 2}}) {
            SCOPED_TRACE(testing::Message() << tokens << " tokens, " << heads << " heads of " << hidden << ", "
                                            << before << " before, " << behind << " behind");
            const at::Tensor x = within(tokens, columns, before, behind, dtype);
            const at::Tensor weight = random_tensor({hidden}, dtype);
            at::Tensor y = within(tokens, columns, behind, before, dtype), again = y.clone();
            at::Tensor rstd = garbage({tokens, heads}), grad_weight = at::ones({hidden});
            at::Tensor grad = within(tokens, columns, before, 0, dtype);
            const at::Tensor grad_y = grad.clone();
            rms_norm_forward(y, rstd, x, weight, norm_eps);
            rms_norm_repeat(again, x, rstd, weight);
            rms_norm_backward_(grad, grad_weight, x, rstd, weight);

            const auto rows = [&](const at::Tensor& t) { return t.to(at::kDouble).reshape({tokens * heads, hidden}); };
            Case c{rows(x), weight, rows(grad_y), at::zeros({tokens * heads, hidden}, at::kDouble), at::ones({hidden})};
            const Results expected = reference_in_double(c);
            const double sums = (hidden / 4.0 + 8) * eps_fp32, stored = rounding(dtype);
            expect_close("rstd", rstd.flatten(), expected.rstd, {sums, 0});
            expect_close("y", rows(y), expected.y, {2.01 * stored + sums, 0});
            expect_identical("again", again.contiguous(), y.contiguous());
            const double largest = std::max(1.0, tokens == 0 ? 0.0 : expected.rstd.max().item<double>()) * 25;
            expect_close("grad", rows(grad), expected.grad_x, {stored, 4 * sums * largest});
            expect_close("grad_weight", grad_weight, expected.grad_weight,
                         {0, (static_cast<double>(tokens * heads) + 16) * eps_fp32 * 25});
          }
        }
}

TEST_P(RmsNorm, repeat_gives_the_same_bits) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const Case c = make_case(19, 131, dtype);
    at::Tensor y = garbage(c.x.sizes(), dtype), again = garbage(c.x.sizes(), dtype), rstd = garbage({19});
    rms_norm_forward(y, rstd, c.x, c.weight, norm_eps);
    rms_norm_repeat(again, c.x, rstd, c.weight);
    expect_identical("y", again, y);
  }
}

// Oracle: Transformers' expression over the kept rstd, each step rounded where it rounds: the same bits.
TEST_P(RmsNorm, rounds_where_transformers_does) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const Case c = make_case(40, 300, dtype);
    const Results r = compute(c);
    const at::Tensor normalized = (c.x.to(at::kFloat) * r.rstd.unsqueeze(1)).to(dtype);
    expect_identical("y", r.y, c.weight * normalized);
  }
}

TEST_P(RmsNorm, does_not_depend_on_threads) {
  const Case c = make_case(3001, 65, at::kFloat);
  expect_same_for_any_threads([&] {
    const Results r = compute(c);
    return std::vector<at::Tensor>{r.y, r.rstd, r.grad_x, r.grad_weight};
  });
  const at::Tensor x = random_tensor({700, 5 * 64}), weight = random_tensor({64}), grad_y = random_tensor(x.sizes());
  at::Tensor y = garbage(x.sizes()), rstd = garbage({700, 5});
  rms_norm_forward(y, rstd, x, weight, norm_eps);
  expect_same_for_any_threads([&] {
    at::Tensor grad = grad_y.clone(), grad_weight = at::zeros({64});
    rms_norm_backward_(grad, grad_weight, x, rstd, weight);
    return std::vector<at::Tensor>{grad, grad_weight};
  });
}

TEST_P(RmsNorm, keeps_not_a_number) {
  Case c = make_case(2, 40, at::kFloat);
  c.x[0][3] = NAN;
  const Results r = compute(c);
  EXPECT_TRUE(r.y[0].isnan().all().item<bool>());
  EXPECT_FALSE(r.y[1].isnan().any().item<bool>());
}

// Rounding adds to the bits of a float: those of this not-a-number would run over into a zero.
TEST_P(RmsNorm, every_not_a_number_survives_rounding_to_bf16) {
  const at::Tensor rstd = at::tensor({0x7fffffff, -1}, at::kInt).view(at::kFloat);
  at::Tensor y = garbage({2, 21}, at::kBFloat16);
  rms_norm_repeat(y, at::ones({2, 21}, at::kBFloat16), rstd, at::ones({21}, at::kBFloat16));
  EXPECT_TRUE(y.isnan().all().item<bool>());
}

TEST(RmsNormEntry, refuses_what_does_not_fit) {
  const at::Tensor x = at::zeros({4, 12}), weight = at::ones({6});
  at::Tensor y = at::zeros({4, 12});
  EXPECT_THROW(rms_norm_forward(y, at::zeros({4}), x, weight, norm_eps), InvariantError);            // two heads
  EXPECT_THROW(rms_norm_forward(y, at::zeros({4, 2}), x, at::ones({5}), norm_eps), InvariantError);  // 12 in heads of 5
}

CONCLAVE_SIMD_TESTS(RmsNorm);

}  // namespace
}  // namespace conclave
