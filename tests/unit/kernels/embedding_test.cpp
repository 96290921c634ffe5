#include "kernels/embedding.h"

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

class Embedding : public SimdTest {};

// Oracle: at::embedding; exact.
TEST_P(Embedding, forward_equals_aten) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    for (const int64_t hidden : {1, 7, 257}) {
      for (const int64_t count : {0, 1, 33, 400}) {
        const at::Tensor table = random_tensor({11, hidden}, dtype);
        const at::Tensor tokens = random_integers(0, 11, {count}, at::kLong);
        at::Tensor out = garbage({count, hidden}, dtype);
        embedding_forward(out, table, tokens);
        expect_identical("out", out, at::embedding(table, tokens));
      }
    }
  }
}

// Oracle: additions in fp32 in a plain loop over tokens, in order: the same bits. And ATen's gradient, in double: at
// most 400 additions of values up to 5 (their sum up to 400 * 5 in the worst case).
TEST_P(Embedding, backward_adds_in_token_order) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t hidden : {1, 7, 64, 65, 257}) {
      for (const int64_t count : {0, 1, 33, 400}) {
        const int64_t vocabulary = 11;
        const at::Tensor grad_out = random_tensor({count, hidden}, dtype);
        const at::Tensor tokens = random_integers(0, vocabulary, {count}, at::kLong);
        const at::Tensor start = random_tensor({vocabulary, hidden});
        at::Tensor actual = start.clone(), plain = start.clone(), expected = start.clone();
        embedding_backward(actual, grad_out, tokens);
        reference::embedding_backward(plain, grad_out, tokens);
        const at::Tensor widened = grad_out.to(at::kFloat);
        for (int64_t t = 0; t < count; ++t) {
          float* sum = expected.data_ptr<float>() + tokens[t].item<int64_t>() * hidden;
          for (int64_t h = 0; h < hidden; ++h) sum[h] += widened.data_ptr<float>()[t * hidden + h];
        }
        expect_identical("grad_table", actual, expected);
        expect_identical("grad_table of the reference", plain, expected);
        const at::Tensor aten = at::embedding_dense_backward(grad_out.to(at::kDouble), tokens, vocabulary,
                                                             /*padding_idx=*/-1, /*scale_grad_by_freq=*/false);
        expect_close("grad_table of ATen", actual, start.to(at::kDouble) + aten, {0, 400 * eps_fp32 * 20});
      }
    }
  }
}

TEST_P(Embedding, does_not_depend_on_threads) {
  const at::Tensor grad_out = random_tensor({1000, 200}), tokens = random_integers(0, 50, {1000}, at::kLong);
  expect_same_for_any_threads([&] {
    at::Tensor grad_table = at::zeros({50, 200});
    embedding_backward(grad_table, grad_out, tokens);
    return std::vector<at::Tensor>{grad_table};
  });
}

TEST(EmbeddingEntry, refuses_a_token_outside_the_vocabulary) {
  if (breach_breaks_device) GTEST_SKIP() << "a kernel that traps leaves a device that no later test can use";
  at::Tensor table = at::zeros({5, 3}), rows = at::zeros({1, 3});
  for (const int64_t token : {-1, 5}) {
    EXPECT_THROW(embedding_forward(rows, table, at::full({1}, token, at::kLong)), InvariantError);
    EXPECT_THROW(embedding_backward(table, rows, at::full({1}, token, at::kLong)), InvariantError);
  }
}

CONCLAVE_SIMD_TESTS(Embedding);

}  // namespace
}  // namespace conclave
