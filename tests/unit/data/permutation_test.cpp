#include "data/permutation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/error.h"

namespace conclave {
namespace {

std::vector<uint64_t> order_of(uint64_t n, uint64_t seed, uint64_t epoch) {
  std::vector<uint64_t> order(n);
  for (uint64_t j = 0; j < n; ++j) order[j] = permuted(j, n, seed, epoch);
  return order;
}

// Oracle: the definition of a permutation, each image once.
TEST(Permutation, is_one_for_every_size) {
  std::vector<uint64_t> sizes;
  for (uint64_t n = 1; n <= 70; ++n) sizes.push_back(n);
  for (uint64_t n : {127, 128, 129, 255, 256, 257, 1000, 1023, 1024, 1025, 4095, 4096, 4097, 10007}) sizes.push_back(n);
  for (const uint64_t n : sizes) {
    for (uint64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<int> seen(n);
      for (const uint64_t image : order_of(n, 99, epoch)) {
        ASSERT_LT(image, n);
        ASSERT_EQ(seen[image]++, 0) << "twice " << image << " of " << n << " in epoch " << epoch;
      }
    }
  }
}

TEST(Permutation, of_a_huge_set_stays_inside_and_differs) {
  const uint64_t n = (uint64_t{1} << 62) + 3;
  EXPECT_LT(permuted(n - 1, n, 1, 0), n);
  EXPECT_NE(permuted(0, n, 1, 0), permuted(1, n, 1, 0));
  EXPECT_THROW(permuted(n, n, 1, 0), InvariantError);
}

TEST(Permutation, epochs_and_seeds_have_orders_of_their_own) {
  EXPECT_EQ(order_of(500, 1, 0), order_of(500, 1, 0));
  EXPECT_NE(order_of(500, 1, 0), order_of(500, 1, 1));
  EXPECT_NE(order_of(500, 1, 0), order_of(500, 2, 0));
}

// Oracle: a uniform permutation maps index 0..n-1 to each image with probability 1/n over the epochs. Chi-square over
// all n*n cells of 20,000 epochs (seed fixed, so the outcome is too): (n-1)^2 degrees of freedom, as rows and columns
// each sum to the number of epochs; the bound is the mean plus five standard deviations, sqrt(2 * degrees). Small n,
// where few bits make a Feistel network weakest.
TEST(Permutation, looks_uniform) {
  const uint64_t epochs = 20000;
  for (const uint64_t n : {2, 3, 4, 5, 7, 16, 31}) {
    std::vector<double> cells(n * n);
    for (uint64_t epoch = 0; epoch < epochs; ++epoch)
      for (uint64_t j = 0; j < n; ++j) ++cells[j * n + permuted(j, n, 12345, epoch)];
    const double expected = static_cast<double>(epochs) / static_cast<double>(n);
    double chi_square = 0;
    for (const double cell : cells) chi_square += (cell - expected) * (cell - expected) / expected;
    // The cells of a row share the epochs: dividing by 1 - 1/n makes (n-1)^2 the mean (a doubly constrained table).
    chi_square *= 1.0 - 1.0 / static_cast<double>(n);
    const double degrees = static_cast<double>((n - 1) * (n - 1));
    EXPECT_LT(chi_square, degrees + 5 * std::sqrt(2 * degrees)) << n;
  }
}

// Oracle: in a uniform permutation neighbours lie n/3 apart on average. Tolerance: five standard errors, n / sqrt(18 n)
// each.
TEST(Permutation, neighbours_are_scattered) {
  const uint64_t n = 20011;
  const auto order = order_of(n, 7, 0);
  double distance = 0;
  for (uint64_t j = 0; j + 1 < n; ++j)
    distance +=
        std::abs(static_cast<double>(order[j]) - static_cast<double>(order[j + 1])) / static_cast<double>(n - 1);
  EXPECT_NEAR(distance, static_cast<double>(n) / 3,
              5 * static_cast<double>(n) / std::sqrt(18.0 * static_cast<double>(n)));
}

// Oracle: the same network written apart from this code, in Python with a Philox of its own (Salmon et al., figure 4).
// The numbers are also a seal: a checkpoint holds only how many samples were seen, so that another order would silently
// repeat samples of a resumed run.
TEST(Permutation, equals_an_independent_computation) {
  EXPECT_EQ(order_of(10, 1234, 0), (std::vector<uint64_t>{7, 2, 0, 1, 8, 9, 6, 5, 3, 4}));
  EXPECT_EQ(order_of(10, 1234, 1), (std::vector<uint64_t>{5, 3, 2, 7, 4, 8, 6, 1, 0, 9}));
  EXPECT_EQ(permuted(0, 1000003, 7, 5), 833167u);
  EXPECT_EQ(permuted(1, 1000003, 7, 5), 626819u);
  EXPECT_EQ(permuted(1000002, 1000003, 7, 5), 640672u);
}

}  // namespace
}  // namespace conclave
