#include "kernels/bias.h"

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

class Bias : public SimdTest {};

// Rows within longer ones.
at::Tensor within(int64_t rows, int64_t columns, int64_t behind, at::ScalarType dtype) {
  return random_tensor({rows, columns + behind}, dtype).narrow(1, 0, columns);
}

// Oracle: ATen's sums in double. Tolerances: one rounding of a sum, and of R terms up to 5 for the gradient.
TEST_P(Bias, equals_the_sum) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const int64_t rows : {0, 1, 33, 300})
      for (const int64_t columns : {1, 7, 64, 2056})
        for (const int64_t behind : {0, 3, 8}) {
          SCOPED_TRACE(testing::Message() << rows << " x " << columns << ", " << behind << " behind");
          const at::Tensor bias = random_tensor({columns}, dtype), in = within(rows, columns, behind, dtype);
          at::Tensor out = within(rows, columns, behind, dtype), alone = garbage({rows, columns}, dtype);
          add_bias(out, in, bias);
          expect_close("sum", out, in.to(at::kDouble) + bias.to(at::kDouble), {rounding(dtype), eps_fp32 * 10});
          add_bias(alone, {}, bias);
          expect_identical("alone", alone, bias.expand_as(alone).contiguous());
          at::Tensor in_place = in.clone();
          add_bias(in_place, in_place, bias);
          expect_identical("in place", in_place, out.contiguous());

          const at::Tensor before = random_tensor({columns}), sum = in.to(at::kDouble).sum(0);
          at::Tensor gradient = before.clone();
          const Tolerance tolerance{0, (static_cast<double>(rows) + 1) * eps_fp32 * 5};
          bias_gradient(gradient, in, /*accumulate=*/true);
          expect_close("gradient added", gradient, before.to(at::kDouble) + sum, tolerance);
          gradient.fill_(NAN);
          bias_gradient(gradient, in, /*accumulate=*/false);
          expect_close("gradient", gradient, sum, tolerance);
        }
}

// Oracle: the reference has no other sums than ATen's.
TEST(BiasReference, equals_the_sum) {
  const at::Tensor in = random_tensor({9, 5}, at::kDouble), bias = random_tensor({5}, at::kDouble);
  at::Tensor out = garbage({9, 5}, at::kDouble), gradient = at::zeros({5}, at::kDouble);
  reference::add_bias(out, in, bias);
  expect_close("sum", out, in + bias, {1e-15, 1e-15});
  reference::bias_gradient(gradient, in);
  expect_close("gradient", gradient, in.sum(0), {1e-14, 1e-14});
}

TEST_P(Bias, gradient_does_not_depend_on_threads) {
  const at::Tensor grad = random_tensor({5000, 96});
  expect_same_for_any_threads([&] {
    at::Tensor gradient = garbage({96});
    bias_gradient(gradient, grad, /*accumulate=*/false);
    return std::vector<at::Tensor>{gradient};
  });
}

TEST(BiasEntry, refuses_what_does_not_fit) {
  at::Tensor out = at::zeros({3, 4});
  EXPECT_THROW(add_bias(out, {}, at::zeros({5})), InvariantError);
  EXPECT_THROW(add_bias(out, at::zeros({2, 4}), at::zeros({4})), InvariantError);
  EXPECT_THROW(bias_gradient(at::zeros({5}), out, false), InvariantError);
}

CONCLAVE_SIMD_TESTS(Bias);

}  // namespace
}  // namespace conclave
