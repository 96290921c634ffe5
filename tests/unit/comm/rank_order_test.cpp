// Reductions in rank order, and the pool that holds what they wait for.
#include "comm/rank_order.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <bit>
#include <random>

#include "base/error.h"

namespace conclave {
namespace {

std::vector<const void*> pointers(const std::vector<at::Tensor>& parts) {
  std::vector<const void*> pointers;
  for (const at::Tensor& part : parts) pointers.push_back(part.data_ptr());
  return pointers;
}

// Oracle: ATen, one addition after the other; bf16 added in fp32 and rounded by ATen at the end. Bits must agree: no
// tolerance.
TEST(RankOrder, equals_one_addition_after_the_other) {
  at::manual_seed(5);
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kLong, at::kInt, at::kByte})
    for (const int64_t count : {0, 1, 2047, 2048, 100'003})
      for (const int ranks : {1, 2, 5}) {
        std::vector<at::Tensor> parts;
        for (int rank = 0; rank < ranks; ++rank) parts.push_back((at::randn({count}) * 100).abs().to(dtype));
        const bool rounds = dtype == at::kBFloat16;
        at::Tensor sum = parts[0].to(rounds ? at::kFloat : dtype), largest = parts[0].clone();
        for (int rank = 1; rank < ranks; ++rank) {
          sum = sum + parts[rank].to(rounds ? at::kFloat : dtype);
          largest = at::maximum(largest, parts[rank]);
        }
        for (const auto threads : {Threads::one, Threads::all}) {
          const at::Tensor out = at::empty({count}, dtype);
          reduce_in_order(dtype, out.data_ptr(), pointers(parts), count, Reduction::sum, threads);
          EXPECT_TRUE(out.equal(sum.to(dtype))) << dtype << " " << count << " " << ranks;
          reduce_in_order(dtype, out.data_ptr(), pointers(parts), count, Reduction::max, threads);
          EXPECT_TRUE(out.equal(largest)) << dtype << " " << count << " " << ranks;
        }
      }
}

// Oracle: ATen's own conversion of float to bf16, for values of every exponent, halfway cases and infinities.
TEST(RankOrder, bf16_rounds_to_nearest_even) {
  const unsigned seed = 99;
  std::mt19937 random(seed);
  const int64_t count = 200'000;
  const at::Tensor a = at::empty({count}, at::kBFloat16), b = at::empty({count}, at::kBFloat16);
  auto fill = [&](const at::Tensor& tensor) {
    auto* bits = static_cast<uint16_t*>(tensor.data_ptr());
    for (int64_t i = 0; i < count; ++i) bits[i] = random() & 0xffff;
  };
  fill(a);
  fill(b);
  const at::Tensor expected = (a.to(at::kFloat) + b.to(at::kFloat)).to(at::kBFloat16), out = at::empty_like(a);
  reduce_in_order(at::kBFloat16, out.data_ptr(), pointers({a, b}), count, Reduction::sum, Threads::all);
  EXPECT_TRUE(at::allclose(out, expected, 0, 0, /*equal_nan=*/true)) << "seed " << seed;
}

TEST(RankOrder, writes_over_one_of_the_parts) {
  const at::Tensor a = at::ones({5000}), b = at::full({5000}, 2.0);
  reduce_in_order(at::kFloat, b.data_ptr(), pointers({a, b}), 5000, Reduction::sum, Threads::all);
  EXPECT_TRUE(b.equal(at::full({5000}, 3.0)));
}

TEST(RankOrder, refuses_other_dtypes) {
  const at::Tensor a = at::zeros({1}, at::kHalf);
  EXPECT_THROW(reduce_in_order(at::kHalf, a.data_ptr(), pointers({a}), 1, Reduction::sum, Threads::one),
               InvariantError);
}

}  // namespace
}  // namespace conclave
