#include "kernels/latent_heads.h"

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

// Rows within longer ones.
at::Tensor within(int64_t rows, int64_t columns, int64_t before, at::ScalarType dtype) {
  return random_tensor({rows, before + columns}, dtype).narrow(1, before, columns);
}

// Keys and values as Transformers' DeepseekV3Attention puts them together, behind the queries.
at::Tensor packed(const at::Tensor& query, const at::Tensor& kv, const at::Tensor& rotary, const LatentHeads& heads) {
  const int64_t tokens = kv.size(0);
  const std::vector<at::Tensor> parts = kv.reshape({tokens, heads.count, heads.plain_dim + heads.value_dim})
                                            .split_with_sizes({heads.plain_dim, heads.value_dim}, 2);
  const at::Tensor turned = rotary.reshape({tokens, 1, heads.rotary_dim}).expand({-1, heads.count, -1});
  return at::cat({query, at::cat({parts[0], turned}, 2).flatten(1), parts[1].flatten(1)}, 1);
}

const std::vector<LatentHeads>& shapes() {
  static const std::vector<LatentHeads> values = {{1, 1, 2, 1},  {3, 5, 4, 7},       {4, 16, 8, 16},
                                                  {2, 0, 8, 24}, {16, 128, 64, 128}, {5, 24, 0, 8}};
  return values;
}

class Latent : public SimdTest {};

// Oracle: Transformers' expression, bit for bit; for the way back autograd over it in double. Tolerance: a sum over
// heads in fp32 of terms up to 5, rounded once.
TEST_P(Latent, equals_the_expression) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const LatentHeads& heads : shapes())
      for (const int64_t tokens : {0, 1, 5, 70})
        for (const int64_t before : {0, 3, 8}) {
          SCOPED_TRACE(testing::Message() << tokens << " tokens, " << heads.count << " heads of " << heads.plain_dim
                                          << " + " << heads.rotary_dim << " and " << heads.value_dim);
          const at::Tensor kv = within(tokens, heads.latent_columns(), before, dtype);
          const at::Tensor rotary = within(tokens, heads.rotary_dim, before, dtype);
          at::Tensor qkv = within(tokens, heads.packed_columns(), before, dtype);
          const at::Tensor query = qkv.narrow(1, 0, heads.count * heads.key_dim()).clone();
          expand_latent(qkv, kv, rotary, heads);
          expect_identical("qkv", qkv.contiguous(), packed(query, kv, rotary, heads));

          const at::Tensor grad_qkv = within(tokens, heads.packed_columns(), before, dtype);
          at::Tensor grad_kv = within(tokens, heads.latent_columns(), before, dtype);
          at::Tensor grad_rotary = within(tokens, heads.rotary_dim, before, dtype);
          collect_latent(grad_kv, grad_rotary, grad_qkv, heads);
          const at::Tensor kv_leaf = leaf(kv), rotary_leaf = leaf(rotary);
          const std::vector<at::Tensor> expected = gradients(packed(query.to(at::kDouble), kv_leaf, rotary_leaf, heads),
                                                             grad_qkv.to(at::kDouble), {kv_leaf, rotary_leaf});
          expect_close("grad_kv", grad_kv, expected[0], {0, 0});
          expect_close("grad_rotary", grad_rotary, expected[1],
                       {rounding(dtype), static_cast<double>(heads.count) * eps_fp32 * 5});
        }
}

TEST(LatentEntry, refuses_what_does_not_fit) {
  const LatentHeads heads{2, 4, 2, 3};
  EXPECT_THROW(expand_latent(at::zeros({5, 30}), at::zeros({5, 13}), at::zeros({5, 2}), heads), InvariantError);
  EXPECT_THROW(expand_latent(at::zeros({5, 29}), at::zeros({5, 14}), at::zeros({5, 2}), heads), InvariantError);
  EXPECT_THROW(collect_latent(at::zeros({4, 14}), at::zeros({5, 2}), at::zeros({5, 30}), heads), InvariantError);
}

CONCLAVE_SIMD_TESTS(Latent);

}  // namespace
}  // namespace conclave
