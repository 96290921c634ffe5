#include "kernels/bias.h"

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

// Rows of each bias: even, skewed, none, one.
const std::vector<std::vector<int64_t>>& cases() {
  static const std::vector<std::vector<int64_t>> values = {{0}, {1}, {7}, {3, 5, 1}, {0, 70, 0, 2}, {0, 0}, {33, 1}};
  return values;
}

struct Case {
  at::Tensor y_RN, bias_LN, scale_R, ends_L, bias_of_row_R;
};

Case make_case(const std::vector<int64_t>& rows, int64_t columns, at::ScalarType dtype, at::ScalarType bias_dtype,
               bool scaled) {
  const at::Tensor count_L = at::tensor(rows, at::kLong);
  const auto all = count_L.sum().item<int64_t>(), biases = static_cast<int64_t>(rows.size());
  Case c{random_tensor({all, columns}, dtype), random_tensor({biases, columns}, bias_dtype),
         scaled ? at::rand({all}) : at::Tensor(), count_L.cumsum(0).to(at::kInt),
         at::repeat_interleave(at::arange(biases), count_L)};
  if (biases == 1 && scaled) c.ends_L = at::Tensor();
  return c;
}

at::Tensor exact_scale(const Case& c) {
  const at::Tensor scale = c.scale_R.defined() ? c.scale_R : at::ones({c.y_RN.size(0)});
  return scale.to(at::kDouble).unsqueeze(1);
}

// The bias of each row, as the rows' dtype holds it, in double.
at::Tensor exact_bias(const Case& c) {
  return c.bias_LN.to(c.y_RN.scalar_type()).to(at::kDouble).index_select(0, c.bias_of_row_R);
}

template <class F>
void for_all_cases(const F& f) {
  for (const auto& rows : cases())
    for (const int64_t columns : {1, 7, 33, 260, 1030})
      for (const auto& [dtype, bias_dtype] : {std::pair{at::kFloat, at::kFloat},
                                              {at::kBFloat16, at::kBFloat16},
                                              {at::kBFloat16, at::kFloat},
                                              {at::kDouble, at::kDouble}})
        for (const bool scaled : {false, true}) {
          Case c = make_case(rows, columns, dtype, bias_dtype, scaled);
          if (dtype == at::kDouble && scaled) c.scale_R = c.scale_R.to(at::kDouble);
          SCOPED_TRACE(testing::Message() << c.y_RN.sizes() << " of " << dtype << ", biases of " << bias_dtype);
          f(c);
        }
}

class Bias : public SimdTest {};

// Oracle: the sum in double. Tolerance: one rounding, and two of fp32 before it of terms up to 5.
TEST_P(Bias, is_added_to_its_rows) {
  for_all_cases([](const Case& c) {
    const at::Tensor expected = c.y_RN.to(at::kDouble) + exact_scale(c) * exact_bias(c);
    at::Tensor y = c.y_RN.clone();
    add_bias(y, c.bias_LN, c.scale_R, c.ends_L);
    expect_close("y", y, expected, {rounding(c.y_RN.scalar_type()), 2 * eps_fp32 * 5});
  });
}

// Oracle: the same rows side by side.
TEST_P(Bias, is_added_to_rows_that_lie_apart) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor room = random_tensor({9, 41}, dtype), bias = random_tensor({1, 33}, dtype);
    at::Tensor apart = room.clone(), together = room.narrow(1, 5, 33).contiguous();
    add_bias(apart.narrow(1, 5, 33), bias);
    add_bias(together, bias);
    expect_identical("rows", apart.narrow(1, 5, 33).contiguous(), together);
    expect_identical("before", apart.narrow(1, 0, 5), room.narrow(1, 0, 5));
    expect_identical("behind", apart.narrow(1, 38, 3), room.narrow(1, 38, 3));
  }
}

// Oracle: sums in double by at::index_add. Tolerance: R roundings of terms up to 5.
TEST_P(Bias, gradient_is_the_sum_over_its_rows) {
  for_all_cases([](const Case& c) {
    for (const bool accumulate : {false, true}) {
      const at::ScalarType wide = c.y_RN.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
      at::Tensor grad = accumulate ? random_tensor(c.bias_LN.sizes(), wide) : garbage(c.bias_LN.sizes(), wide);
      at::Tensor expected = accumulate ? grad.to(at::kDouble) : at::zeros(grad.sizes(), at::kDouble);
      expected = expected.index_add(0, c.bias_of_row_R, exact_scale(c) * c.y_RN.to(at::kDouble));
      bias_backward(grad, c.y_RN, accumulate, c.scale_R, c.ends_L);
      expect_close("grad_bias", grad, expected, {0, static_cast<double>(c.y_RN.size(0) + 2) * eps_fp32 * 5});
    }
  });
}

// Oracle: dot products in double. Tolerance: N / 4 roundings of the sum of magnitudes, at most 25 each.
TEST_P(Bias, gradient_of_the_scale_is_a_dot_product) {
  for_all_cases([](const Case& c) {
    const at::ScalarType wide = c.y_RN.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    at::Tensor grad = random_tensor({c.y_RN.size(0)}, wide);
    const at::Tensor expected = grad.to(at::kDouble) + (c.y_RN.to(at::kDouble) * exact_bias(c)).sum(1);
    bias_scale_backward_add(grad, c.y_RN, c.bias_LN, c.ends_L);
    const auto columns = static_cast<double>(c.y_RN.size(1));
    expect_close("grad_scale", grad, expected, {0, (columns / 4 + 8) * eps_fp32 * columns});
  });
}

TEST_P(Bias, does_not_depend_on_threads) {
  const Case c = make_case({700, 0, 900}, 1030, at::kFloat, at::kFloat, true);
  expect_same_for_any_threads([&] {
    at::Tensor y = c.y_RN.clone(), grad = garbage(c.bias_LN.sizes()), grad_scale = c.scale_R.clone();
    add_bias(y, c.bias_LN, c.scale_R, c.ends_L);
    bias_backward(grad, c.y_RN, false, c.scale_R, c.ends_L);
    bias_scale_backward_add(grad_scale, c.y_RN, c.bias_LN, c.ends_L);
    return std::vector<at::Tensor>{y, grad, grad_scale};
  });
}

CONCLAVE_SIMD_TESTS(Bias);

TEST(BiasEntry, refuses_what_does_not_fit) {
  const at::Tensor y = at::zeros({3, 4});
  EXPECT_THROW(add_bias(y, at::zeros({1, 5})), InvariantError);
  EXPECT_THROW(add_bias(y, at::zeros({2, 4})), InvariantError);  // nobody says whose the rows are
  EXPECT_THROW(add_bias(y, at::zeros({1, 4}, at::kBFloat16)), InvariantError);
  EXPECT_THROW(add_bias(y, at::zeros({1, 4}), at::zeros({2})), InvariantError);
  EXPECT_THROW(bias_backward(at::zeros({1, 4}, at::kBFloat16), y, false), InvariantError);
  EXPECT_THROW(bias_scale_backward_add(at::zeros({2}), y, at::zeros({1, 4})), InvariantError);
}

}  // namespace
}  // namespace conclave
