#include "kernels/rotary.h"

#include <cmath>

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

// Oracle: the angles in double. Tolerance: an inverse frequency errs by some 4 eps (division, power, reciprocal), so an
// angle errs by that times the position (here < 100) plus its rounding; as Transformers' does.
TEST(RotaryTable, holds_the_angles_of_the_formula) {
  const int64_t sequence = 100, head_dim = 10;
  const RotaryTable table = rotary_table(sequence, head_dim, 10000.0, at::kCPU);
  at::Tensor angle = at::empty({sequence, head_dim / 2}, at::kDouble);
  for (int64_t position = 0; position < sequence; ++position) {
    for (int64_t j = 0; j < head_dim / 2; ++j) {
      angle[position][j] = position * std::pow(10000.0, -2.0 * j / head_dim);
    }
  }
  expect_close("cos", table.cos_SD, angle.cos(), {0, 6 * eps_fp32 * sequence});
  expect_close("sin", table.sin_SD, angle.sin(), {0, 6 * eps_fp32 * sequence});
}

// Hugging Face's expression, x * cos + rotate_half(x) * sin, on the first `heads` heads of rows [T, columns]. In
// double.
at::Tensor rotate_half_expression(const at::Tensor& rows, int64_t heads, int64_t head_dim, const RotaryTable& table) {
  const int64_t tokens = rows.size(0), sequence = table.cos_SD.size(0), half = head_dim / 2;
  const auto twice = [&](const at::Tensor& t) {
    return at::cat({t, t}, 1).to(at::kDouble).repeat({tokens / sequence, 1}).view({tokens, 1, head_dim});
  };
  const at::Tensor x = rows.to(at::kDouble).narrow(1, 0, heads * head_dim).reshape({tokens, heads, head_dim});
  const at::Tensor rotated = at::cat({-x.narrow(2, half, half), x.narrow(2, 0, half)}, 2);
  const at::Tensor turned = x * twice(table.cos_SD) + rotated * twice(table.sin_SD);
  const int64_t rest = rows.size(1) - heads * head_dim;
  return at::cat({turned.reshape({tokens, heads * head_dim}), rows.to(at::kDouble).narrow(1, heads * head_dim, rest)},
                 1);
}

// Oracle: Hugging Face's expression, and autograd for the way back. Tolerance: a few roundings of double.
TEST(RotaryReference, equals_autograd) {
  const RotaryTable table = rotary_table(5, 6, 10000.0, at::kCPU);
  const at::Tensor rows = leaf(random_tensor({10, 2 * 6 + 3}, at::kDouble));
  const at::Tensor grad_out = random_tensor(rows.sizes(), at::kDouble);
  const at::Tensor expected = rotate_half_expression(rows, 2, 6, table);
  at::Tensor actual = rows.detach().clone(), grad = grad_out.clone();
  reference::rotary_forward_(actual, 2, 6, table);
  expect_close("out", actual, expected, {1e-14, 1e-15});
  reference::rotary_backward_(grad, 2, 6, table);
  expect_close("grad", grad, gradients(expected, grad_out, {rows})[0], {1e-14, 1e-15});
}

class Rotary : public SimdTest {};

// Oracle: Hugging Face's expression in double with the same table. Tolerance: two products and a sum of terms up to 6,
// then one rounding.
TEST_P(Rotary, equals_the_expression) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t head_dim : {2, 8, 14, 34, 128}) {
      for (const int64_t sequence : {1, 7, 33}) {
        for (const int64_t heads : {0, 1, 5}) {
          for (const int64_t batch : {0, 1, 3}) {
            const RotaryTable table = rotary_table(sequence, head_dim, 1e6, at::kCPU);
            const at::Tensor rows = random_tensor({batch * sequence, heads * head_dim + 5}, dtype);
            at::Tensor forward = rows.clone(), backward = rows.clone();
            rotary_forward_(forward, heads, head_dim, table);
            rotary_backward_(backward, heads, head_dim, table);
            const Tolerance tolerance{rounding(dtype), 3 * eps_fp32 * 6};
            expect_close("forward", forward, rotate_half_expression(rows, heads, head_dim, table), tolerance);
            const RotaryTable inverse{table.cos_SD, -table.sin_SD};
            expect_close("backward", backward, rotate_half_expression(rows, heads, head_dim, inverse), tolerance);
            expect_identical("the other heads", forward.narrow(1, heads * head_dim, 5).contiguous(),
                             rows.narrow(1, heads * head_dim, 5).contiguous());
          }
        }
      }
    }
  }
}

TEST_P(Rotary, does_not_depend_on_threads) {
  const RotaryTable table = rotary_table(100, 64, 10000.0, at::kCPU);
  const at::Tensor rows = random_tensor({300, 8 * 64});
  expect_same_for_any_threads([&] {
    at::Tensor turned = rows.clone();
    rotary_forward_(turned, 6, 64, table);
    return std::vector<at::Tensor>{turned};
  });
}

TEST(RotaryEntry, refuses_what_does_not_fit) {
  const RotaryTable table = rotary_table(5, 6, 10000.0, at::kCPU);
  EXPECT_THROW(rotary_forward_(at::zeros({7, 12}), 2, 6, table), InvariantError);   // 7 rows in sequences of 5
  EXPECT_THROW(rotary_forward_(at::zeros({10, 12}), 3, 6, table), InvariantError);  // 3 heads of 6 in rows of 12
  EXPECT_THROW(rotary_table(5, 7, 10000.0, at::kCPU), InvariantError);
}

CONCLAVE_SIMD_TESTS(Rotary);

}  // namespace
}  // namespace conclave
