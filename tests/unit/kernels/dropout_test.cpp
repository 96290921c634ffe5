// Dropout. Oracle: the definition, element by element, with the drawn numbers of base/random.h.
#include "kernels/dropout.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/random.h"

namespace conclave {
namespace {

constexpr uint64_t seed = 7, stream = 11;

// Bit-equal: of one sum or product there is but one rounding.
TEST(Dropout, drops_what_is_drawn_below_the_probability_and_scales_the_others) {
  const std::vector<int64_t> samples = {5, 2, 900};
  constexpr int64_t sequence = 6, columns = 7;
  at::manual_seed(seed);
  const at::Tensor x = at::randn({3 * sequence, columns});
  for (const double probability : {0.0, 0.1, 0.5, 0.9}) {
    at::Tensor expected = at::empty_like(x);
    for (int64_t b = 0; b < 3; ++b) {
      std::vector<float> drawn(sequence * columns);
      fill_uniform(drawn, seed, stream, static_cast<uint64_t>(samples[b] * sequence * columns), 0.0f, 1.0f);
      const float kept = 1.0f / (1.0f - static_cast<float>(probability));
      for (int64_t i = 0; i < sequence * columns; ++i) {
        const bool keep = drawn[i] >= static_cast<float>(probability);
        expected.view({-1})[b * sequence * columns + i] =
            keep ? x.view({-1})[b * sequence * columns + i].item<float>() * kept : 0.0f;
      }
    }
    at::Tensor y = at::empty_like(x);
    dropout(y, x, {probability, seed, stream, sequence, &samples});
    EXPECT_TRUE(y.equal(expected)) << probability;
    // Any range of the rows, in place too.
    for (const int64_t begin : {0, 1, 5, 6, 11})
      for (const int64_t count : {0, 1, 4, 7}) {
        at::Tensor part = x.narrow(0, begin, count).clone();
        dropout(part, part, {probability, seed, stream, sequence, &samples, begin});
        EXPECT_TRUE(part.equal(expected.narrow(0, begin, count))) << begin << " " << count;
      }
  }
}

TEST(Dropout, keeps_the_mean_and_draws_other_numbers_for_other_streams) {
  const std::vector<int64_t> samples = {1};
  const at::Tensor ones = at::ones({256, 256});
  at::Tensor first = at::empty_like(ones), second = at::empty_like(ones);
  dropout(first, ones, {0.25, seed, stream, 256, &samples});
  dropout(second, ones, {0.25, seed, stream + 1, 256, &samples});
  EXPECT_NEAR(first.mean().item<double>(), 1.0, 0.01);
  EXPECT_NEAR(first.eq(0).to(at::kFloat).mean().item<double>(), 0.25, 0.01);
  EXPECT_NEAR((first.eq(0) & second.eq(0)).to(at::kFloat).mean().item<double>(), 0.0625, 0.01);
}

}  // namespace
}  // namespace conclave
