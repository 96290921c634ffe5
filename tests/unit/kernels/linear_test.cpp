#include "kernels/linear.h"
#include "kernels/kernels.h"

#include <ATen/core/grad_mode.h>

#include <cmath>

#include "base/error.h"
#include "kernel_test.h"
#include "kernels/blocked_product.h"

namespace conclave {
namespace {

// A matrix inside a larger buffer: `before` elements in front, rows `stride` apart (0: dense), as gradients lie in the
// flat buffer. What lies around it is not a number.
at::Tensor view_inside(int64_t rows, int64_t columns, int64_t before, int64_t stride, at::ScalarType dtype) {
  if (stride == 0) stride = columns;
  const at::Tensor buffer = at::full({before + rows * stride + 1}, std::nan(""), dtype);
  return at::as_strided(buffer, {rows, columns}, {stride, 1}, before).copy_(random_tensor({rows, columns}, dtype));
}

// A product of `terms` terms errs by at most terms * eps of the sum of magnitudes; one rounding to the dtype follows
// (two where bf16 adds to what is there: oneDNN rounds the product, then the sum). Magnitudes: 5 * 5 a term at the very
// most.
Tolerance product_tolerance(int64_t terms, at::ScalarType dtype) {
  return {2 * rounding(dtype),
          (terms + 2) * eps_fp32 * 25 + (dtype == at::kBFloat16 ? rounding(dtype) * 5 * std::sqrt(terms) : 0)};
}

// Oracle: at::matmul in double.
void expect_products_in_double(int64_t rows, int64_t n, int64_t m, int64_t gap, at::ScalarType dtype) {
  SCOPED_TRACE(testing::Message() << rows << " rows, " << n << " x " << m << ", gap " << gap << ", " << dtype);
  const at::Tensor x = view_inside(rows, m, 1, m + gap, dtype), w = view_inside(n, m, 4, m + gap, dtype);
  const at::Tensor grad_y = view_inside(rows, n, 2, n + gap, dtype);
  const at::Tensor exact_x = x.to(at::kDouble), exact_w = w.to(at::kDouble), exact_grad = grad_y.to(at::kDouble);

  at::Tensor y = view_inside(rows, n, 3, n + gap, dtype).fill_(1e30);
  linear_forward(y, x, w);
  expect_close("y", y, exact_x.matmul(exact_w.t()), product_tolerance(m, dtype));

  y = view_inside(rows, n, 3, n + gap, dtype);
  const at::Tensor residual = y.to(at::kDouble).clone();
  linear_forward_add(y, x, w);
  expect_close("residual + y", y, residual + exact_x.matmul(exact_w.t()), product_tolerance(m, dtype));

  at::Tensor grad_x = view_inside(rows, m, 3, m + gap, dtype).fill_(1e30);
  linear_backward_input(grad_x, grad_y, w);
  expect_close("grad_x", grad_x, exact_grad.matmul(exact_w), product_tolerance(n, dtype));

  const at::Tensor there = random_tensor(grad_x.sizes(), dtype);
  grad_x.copy_(there);
  linear_backward_input_add(grad_x, grad_y, w);
  expect_close("grad_x added", grad_x, there.to(at::kDouble) + exact_grad.matmul(exact_w), product_tolerance(n, dtype));

  const at::ScalarType wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor grad_w = view_inside(n, m, 3, 0, wide);
  const at::Tensor before = grad_w.to(at::kDouble).clone(), product = exact_grad.t().matmul(exact_x);
  linear_backward_weight(grad_w, grad_y, x, /*accumulate=*/true);
  expect_close("grad_w added", grad_w, before + product, product_tolerance(rows, dtype));
  grad_w.fill_(1e30);
  linear_backward_weight(grad_w, grad_y, x, /*accumulate=*/false);
  expect_close("grad_w", grad_w, product, product_tolerance(rows, dtype));
}

TEST(Linear, equals_products_in_double) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble})
    for (const int64_t rows : {0, 1, 17, 130, 600})
      for (const auto& [n, m] : {std::pair<int64_t, int64_t>{1, 1}, {7, 33}, {257, 16}, {64, 128}})
        for (const int64_t gap : {0, 3}) expect_products_in_double(rows, n, m, gap, dtype);
}

// Sizes that are divided into tiles, in every direction.
TEST(Linear, equals_products_in_double_where_tiles_meet) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const auto& [rows, n, m] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 1100, 520}, {33, 520, 4200}, {530, 4200, 40}})
      for (const int64_t gap : {0, 3}) expect_products_in_double(rows, n, m, gap, dtype);
}

// Oracle: the products with a weight that was rounded before, whose bits must be the same. Sizes with odd numbers of
// terms, partial blocks, and several blocks in every direction; values that round up, overflow, or are no numbers.
TEST(Linear, rounds_a_weight_in_fp32_as_it_reads_it) {
  for (const auto& [rows, n, m] : {std::tuple<int64_t, int64_t, int64_t>{0, 3, 5},
                                   {1, 1, 1},
                                   {17, 7, 33},
                                   {70, 130, 515},
                                   {33, 1100, 520},
                                   {1030, 40, 600}})
    for (const int64_t gap : {0, 3}) {
      SCOPED_TRACE(testing::Message() << rows << " rows, " << n << " x " << m << ", gap " << gap);
      const at::Tensor x = view_inside(rows, m, 1, m + gap, at::kBFloat16);
      const at::Tensor grad_y = view_inside(rows, n, 2, n + gap, at::kBFloat16);
      at::Tensor w = view_inside(n, m, 4, m + gap, at::kFloat);
      const auto expect_same_as_rounded = [&] {
        const at::Tensor rounded = w.to(at::kBFloat16);
        at::Tensor y = at::empty({rows, n}, at::kBFloat16), expected_y = at::empty_like(y);
        linear_forward(y, x, w);
        linear_forward(expected_y, x, rounded);
        EXPECT_TRUE(at::equal(y.view(at::kShort), expected_y.view(at::kShort)));
        at::Tensor grad_x = at::empty({rows, m}, at::kBFloat16), expected_x = at::empty_like(grad_x);
        linear_backward_input(grad_x, grad_y, w);
        linear_backward_input(expected_x, grad_y, rounded);
        EXPECT_TRUE(at::equal(grad_x.view(at::kShort), expected_x.view(at::kShort)));
      };
      expect_same_as_rounded();
      w[n / 2][m / 2] = 3.4e38F;  // rounds to infinity
      expect_same_as_rounded();
      w[n / 2][m / 2] = std::nanf("");
      expect_same_as_rounded();
    }
}

bool cpu_multiplies() {
  return kernels_of(at::kCPU).multiply == cpu_kernels().multiply;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  const at::ScalarType bits = a.scalar_type() == at::kFloat ? at::kInt : at::kShort;
  return at::equal(a.contiguous().view(bits), b.contiguous().view(bits));
}

// Oracle: the same rows among many, whose product with a weight is computed another way round on CPUs
// (turned_product.h). Partial blocks and panels in every direction, and numbers of terms that cannot be turned.
TEST(Linear, few_rows_have_the_bits_that_they_have_among_many) {
  if (!cpu_multiplies()) GTEST_SKIP() << "products of another device";
  constexpr int64_t many = 700;
  for (const auto& [dtype, of_weight] :
       {std::pair{at::kFloat, at::kFloat}, {at::kBFloat16, at::kBFloat16}, {at::kBFloat16, at::kFloat}}) {
    if (!cpu::multiplies_in_blocks(dtype)) continue;  // MKL's sums may change with the number of rows
    for (const auto& [n, m] : {std::pair<int64_t, int64_t>{512, 256}, {130, 1030}, {1100, 514}, {257, 33}})
      for (const int64_t gap : {0, 3}) {
        const at::Tensor x = view_inside(many, m, 1, m + gap, dtype), w = view_inside(n, m, 4, m + gap, of_weight);
        const at::Tensor before = view_inside(many, n, 3, n + gap, dtype);
        at::Tensor all = at::empty({many, n}, dtype), all_added = before.clone();
        linear_forward(all, x, w);
        linear_forward_add(all_added, x, w);
        for (const int64_t rows : {1, 8, 17, 64, 129, 200}) {
          SCOPED_TRACE(testing::Message() << rows << " rows, " << n << " x " << m << ", gap " << gap << ", " << dtype);
          const at::Tensor buffer = view_inside(many, n, 3, n + gap, dtype).copy_(before);
          const at::Tensor y = buffer.narrow(0, 50, rows), behind = buffer.narrow(0, 50 + rows, 5);
          linear_forward_add(y, x.narrow(0, 50, rows), w);
          EXPECT_TRUE(same_bits(y, all_added.narrow(0, 50, rows)));
          linear_forward(y, x.narrow(0, 50, rows), w);
          EXPECT_TRUE(same_bits(y, all.narrow(0, 50, rows)));
          EXPECT_TRUE(same_bits(behind, before.narrow(0, 50 + rows, 5)));
        }
      }
  }
}

// Oracle: its parts, one after the other. Of few rows, a large one is written past the caches.
TEST(Linear, a_large_weight_gradient_has_the_bits_of_its_parts) {
  if (!cpu_multiplies()) GTEST_SKIP() << "products of another device";
  constexpr int64_t n = 520, m = 300, part = 104;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    if (!cpu::multiplies_in_blocks(dtype)) continue;
    for (const int64_t before : {0, 3})
      for (const int64_t rows : {1, 8, 31, 130, 256}) {
        SCOPED_TRACE(testing::Message() << rows << " rows, " << before << " before, " << dtype);
        const at::Tensor x = random_tensor({rows, m}, dtype), grad_y = random_tensor({rows, n}, dtype);
        const at::Tensor buffer = at::full({before + n * m + 20}, 42.0F);
        const at::Tensor grad_w = buffer.narrow(0, before, n * m).view({n, m});
        linear_backward_weight(grad_w, grad_y, x, /*accumulate=*/false);
        for (int64_t first = 0; first < n; first += part) {
          const at::Tensor alone = at::empty({part, m});
          linear_backward_weight(alone, grad_y.narrow(1, first, part), x, /*accumulate=*/false);
          EXPECT_TRUE(same_bits(grad_w.narrow(0, first, part), alone));
        }
        EXPECT_TRUE(buffer.narrow(0, 0, before).eq(42).all().item<bool>());
        EXPECT_TRUE(buffer.narrow(0, before + n * m, 20).eq(42).all().item<bool>());
      }
  }
}

// Written in place: the view still points into the buffer, and its neighbours keep their values.
TEST(Linear, writes_into_the_views_it_is_given) {
  const at::Tensor x = random_tensor({9, 6}), grad_y = random_tensor({9, 4});
  at::Tensor buffer = at::full({2 + 4 * 6 + 2}, 42.0f);
  const at::Tensor grad_w = buffer.narrow(0, 2, 24).view({4, 6});
  linear_backward_weight(grad_w, grad_y, x, /*accumulate=*/false);
  EXPECT_EQ(grad_w.data_ptr<float>(), buffer.data_ptr<float>() + 2);
  expect_close("inside", buffer.narrow(0, 2, 24).view({4, 6}), grad_y.t().matmul(x), {0, 11 * eps_fp32 * 25});
  for (const int64_t outside : {0, 1, 26, 27}) EXPECT_EQ(buffer[outside].item<float>(), 42.0f);
}

TEST(Linear, no_rows_leave_or_zero_the_weight_gradient) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = random_tensor({0, 6}, dtype), grad_y = random_tensor({0, 4}, dtype);
    at::Tensor grad_w = at::full({4, 6}, 42.0f);
    linear_backward_weight(grad_w, grad_y, x, /*accumulate=*/true);
    EXPECT_TRUE(grad_w.eq(42).all().item<bool>());
    linear_backward_weight(grad_w, grad_y, x, /*accumulate=*/false);
    EXPECT_TRUE(grad_w.eq(0).all().item<bool>());
  }
}

// Few rows, long sums and several tiles: where MKL and oneDNN left alone give other bits with two threads than with
// one.
TEST(Linear, does_not_depend_on_threads) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [rows, n, m] :
         {std::tuple<int64_t, int64_t, int64_t>{7, 1000, 512}, {16384, 64, 64}, {700, 600, 90}}) {
      const at::Tensor x = random_tensor({rows, m}, dtype), w = random_tensor({n, m}, dtype);
      const at::Tensor grad_y = random_tensor({rows, n}, dtype), grad_w = random_tensor({n, m});
      expect_same_for_any_threads([&] {
        at::Tensor y = grad_y.clone(), grad_x = at::empty_like(x), sum = grad_w.clone(), alone = at::empty_like(sum);
        linear_forward_add(y, x, w);
        linear_backward_input(grad_x, grad_y, w);
        linear_backward_input_add(grad_x, grad_y, w);
        linear_backward_weight(sum, grad_y, x, /*accumulate=*/true);
        linear_backward_weight(alone, grad_y, x, /*accumulate=*/false);
        return std::vector<at::Tensor>{y, grad_x, sum, alone};
      });
    }
  }
}

// Workers have a gradient mode of their own: the caller's must not matter.
TEST(Linear, multiplies_tensors_that_require_a_gradient_under_no_grad) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = random_tensor({1100, 30}).requires_grad_(), w = random_tensor({40, 30}).requires_grad_();
  at::Tensor y = garbage({1100, 40});
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  linear_forward(y, x, w);
  at::set_num_threads(threads);
  expect_close("y", y, x.to(at::kDouble).matmul(w.to(at::kDouble).t()), product_tolerance(30, at::kFloat));
}

TEST(LinearEntry, refuses_what_does_not_fit) {
  at::Tensor y = at::zeros({3, 4});
  EXPECT_THROW(linear_forward(y, at::zeros({3, 5}), at::zeros({4, 6})), InvariantError);
  EXPECT_THROW(linear_forward(y, at::zeros({2, 5}), at::zeros({4, 5})), InvariantError);
  EXPECT_THROW(linear_forward(y, at::zeros({3, 5}), at::zeros({4, 5}, at::kBFloat16)), InvariantError);
  EXPECT_THROW(linear_forward(y, at::zeros({5, 3}).t(), at::zeros({4, 5})), InvariantError);
  EXPECT_THROW(linear_backward_weight(at::zeros({4, 5}, at::kBFloat16), y, at::zeros({3, 5}), true), InvariantError);
}

}  // namespace
}  // namespace conclave
