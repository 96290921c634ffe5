#include "base/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

namespace conclave {
namespace {

TEST(Random, any_slice_of_a_stream_is_computed_alone) {
  std::vector<float> whole(1003);
  fill_normal(whole, 7, random_stream("layer.weight"), 0, 0.0f, 1.0f);
  for (size_t begin : {0, 1, 2, 3, 4, 5, 500, 1002}) {
    for (size_t count : {0, 1, 3, 4, 7, 200}) {
      if (begin + count > whole.size()) continue;
      std::vector<float> slice(count);
      fill_normal(slice, 7, random_stream("layer.weight"), begin, 0.0f, 1.0f);
      for (size_t j = 0; j < count; ++j) EXPECT_EQ(slice[j], whole[begin + j]) << begin << " + " << j;
    }
  }
}

// Tolerances: five standard errors of n = 200,000 samples: 5/sqrt(n) = 0.011 for the mean, 5*sqrt(2/n) = 0.016 for the
// variance.
TEST(Random, normal_has_its_mean_and_variance) {
  const size_t n = 200000;
  std::vector<float> values(n);
  fill_normal(values, 1, random_stream("a"), 12345, 0.0f, 1.0f);
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double variance = 0;
  for (float value : values) variance += (value - mean) * (value - mean) / n;
  EXPECT_NEAR(mean, 0.0, 0.011);
  EXPECT_NEAR(variance, 1.0, 0.016);
}

TEST(Random, seed_and_name_both_matter) {
  std::vector<float> a(8), b(8), c(8);
  fill_normal(a, 1, random_stream("x"), 0, 0.0f, 1.0f);
  fill_normal(b, 2, random_stream("x"), 0, 0.0f, 1.0f);
  fill_normal(c, 1, random_stream("y"), 0, 0.0f, 1.0f);
  EXPECT_NE(a, b);
  EXPECT_NE(a, c);
  EXPECT_NE(random_u64(1, 2, 3), random_u64(1, 2, 4));
}

// Known answer: Philox4x32-10 of counter 0, key 0, from Random123's kat_vectors (6627e8d5 e169c58d bc57ac4c 9b00dbd8).
TEST(Random, equals_the_published_vector) {
  EXPECT_EQ(random_u64(0, 0, 0), 0x6627e8d5e169c58dull);
  EXPECT_EQ(random_u64(0, 0, 1), 0xbc57ac4c9b00dbd8ull);
}

}  // namespace
}  // namespace conclave
