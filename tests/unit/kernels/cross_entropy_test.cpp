#include "kernels/cross_entropy.h"

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

constexpr double scale = 0.37;

struct Case {
  at::Tensor logits, targets;
};

// Every fifth target is ignored.
Case make_case(int64_t tokens, int64_t vocabulary, at::ScalarType dtype) {
  Case c{random_tensor({tokens, vocabulary}, dtype) * 4, random_integers(0, vocabulary, {tokens}, at::kLong)};
  for (int64_t t = 0; t < tokens; t += 5) c.targets[t] = -100;
  return c;
}

struct Results {
  double loss;
  at::Tensor gradient;
};

// ATen's own loss, in double, and its gradient by autograd.
Results oracle(const Case& c) {
  const at::Tensor logits = leaf(c.logits);
  const at::Tensor loss = at::cross_entropy_loss(logits, c.targets, {}, at::Reduction::Sum, -100);
  const at::Tensor gradient = gradients(loss, at::scalar_tensor(scale, at::kDouble), {logits})[0];
  return {loss.item<double>(), gradient};
}

// Oracle: at::cross_entropy_loss in double. Tolerance: a few roundings of double.
TEST(CrossEntropyReference, equals_aten_and_autograd) {
  Case c = make_case(13, 29, at::kDouble);
  const Results expected = oracle(c);
  EXPECT_NEAR(reference::cross_entropy(c.logits, c.targets), expected.loss, 1e-12 * expected.loss);
  EXPECT_NEAR(reference::cross_entropy_with_gradient_(c.logits, c.targets, scale), expected.loss,
              1e-12 * expected.loss);
  expect_close("gradient", c.logits, expected.gradient, {1e-13, 1e-15});
}

class CrossEntropy : public SimdTest {};

// Oracle: at::cross_entropy_loss in double on the same logits. Tolerances: an exponential errs by 2 eps plus eps |x|
// (its argument is rounded; |x| <= 40 here), their sums in blocks of 2048 by 2048 / 4 eps at the very most: 600 eps of
// a probability; the loss of a token errs as much, absolutely. The gradient is then rounded once to the dtype.
TEST_P(CrossEntropy, equals_aten) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t tokens : {0, 1, 2, 17}) {
      for (const int64_t vocabulary : {1, 2, 7, 33, 257, 2048, 5001}) {
        Case c = make_case(tokens, vocabulary, dtype);
        const Results expected = oracle(c);
        EXPECT_NEAR(cross_entropy(c.logits, c.targets), expected.loss, 600 * eps_fp32 * tokens);
        const double loss = cross_entropy_with_gradient_(c.logits, c.targets, scale);
        EXPECT_NEAR(loss, expected.loss, 600 * eps_fp32 * tokens);
        expect_close("gradient", c.logits, expected.gradient, {rounding(dtype) + 600 * eps_fp32, 1e-30});
      }
    }
  }
}

TEST_P(CrossEntropy, a_large_vocabulary) {
  Case c = make_case(3, 131071, at::kFloat);
  const Results expected = oracle(c);
  EXPECT_NEAR(cross_entropy_with_gradient_(c.logits, c.targets, scale), expected.loss, 600 * eps_fp32 * 3);
  expect_close("gradient", c.logits, expected.gradient, {600 * eps_fp32, 1e-30});
}

// softmax is 1 up to rounding at the target: loss and gradient must keep their digits, relative to themselves.
TEST_P(CrossEntropy, a_confident_prediction) {
  Case c{at::zeros({1, 40}), at::tensor({int64_t{7}})};
  c.logits[0][7] = 20;
  const double rest = 39 * std::exp(-20.0);  // softmax of the others, to first order
  EXPECT_NEAR(cross_entropy_with_gradient_(c.logits, c.targets, 1), std::log1p(rest), 1e-7);
  EXPECT_NEAR(c.logits[0][0].item<double>(), std::exp(-20.0), 1e-5 * std::exp(-20.0));
}

TEST_P(CrossEntropy, ignored_rows_and_not_a_number) {
  Case c = make_case(4, 50, at::kFloat);
  c.targets.fill_(-100);
  c.logits.fill_(NAN);
  EXPECT_EQ(cross_entropy_with_gradient_(c.logits, c.targets, scale), 0);
  EXPECT_TRUE(c.logits.eq(0).all().item<bool>());

  c = make_case(4, 50, at::kFloat);
  c.targets.fill_(1);
  c.logits[2][49] = NAN;
  EXPECT_TRUE(std::isnan(cross_entropy(c.logits, c.targets)));
  EXPECT_TRUE(std::isnan(cross_entropy_with_gradient_(c.logits, c.targets, scale)));
  EXPECT_TRUE(c.logits[2].isnan().all().item<bool>());
  EXPECT_FALSE(c.logits[1].isnan().any().item<bool>());
}

TEST_P(CrossEntropy, a_target_outside_the_vocabulary_is_refused) {
  if (breach_breaks_device) GTEST_SKIP() << "a kernel that traps leaves a device that no later test can use";
  Case c = make_case(4, 50, at::kFloat);
  c.targets[3] = 50;
  EXPECT_THROW(cross_entropy(c.logits, c.targets), InvariantError);
  c.targets[3] = -1;
  EXPECT_THROW(cross_entropy_with_gradient_(c.logits, c.targets, scale), InvariantError);
}

TEST_P(CrossEntropy, does_not_depend_on_threads) {
  const Case c = make_case(65, 1500, at::kBFloat16);
  expect_same_for_any_threads([&] {
    at::Tensor logits = c.logits.clone();
    const double loss = cross_entropy_with_gradient_(logits, c.targets, scale);
    return std::vector<at::Tensor>{at::scalar_tensor(loss, at::kDouble), logits};
  });
}

CONCLAVE_SIMD_TESTS(CrossEntropy);

}  // namespace
}  // namespace conclave
