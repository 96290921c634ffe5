// How tokens are divided into parts. Oracle: the promises of the header, checked one by one.
#include "moe/token_parts.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace conclave {
namespace {

TEST(TokenParts, equal_ones_cover_the_tokens) {
  for (const int64_t tokens : {0, 1, 7, 64})
    for (const int64_t count : {1, 2, 3, 9}) {
      const auto parts = equal_parts(tokens, count);
      ASSERT_EQ(parts.size(), static_cast<size_t>(count));
      int64_t begin = 0;
      for (const TokenPart& part : parts) {
        EXPECT_EQ(part.begin, begin);
        EXPECT_LE(part.count, (tokens + count - 1) / count);
        begin += part.count;
      }
      EXPECT_EQ(begin, tokens);
    }
}

// Blocks of 4 rows each on 2 ranks: the mean of a rank is 8.
TEST(TokenParts, are_as_few_as_the_limit_allows) {
  const std::vector<std::vector<int64_t>> even(4, {2, 2}), all_to_one(4, {4, 0});
  EXPECT_EQ(detail::first_blocks_of_parts(even, 1.0), std::vector<int64_t>{0});
  EXPECT_EQ(detail::first_blocks_of_parts(all_to_one, 1.0), (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(detail::first_blocks_of_parts(all_to_one, 1.5), (std::vector<int64_t>{0, 3}));
  EXPECT_EQ(detail::first_blocks_of_parts(all_to_one, 2.0), std::vector<int64_t>{0});
  EXPECT_EQ(detail::first_blocks_of_parts({{0, 0}, {0, 0}}, 1.0), std::vector<int64_t>{0});
  // A block above the limit is a part of its own.
  EXPECT_EQ(detail::first_blocks_of_parts({{1, 1}, {8, 0}, {1, 1}}, 1.0), (std::vector<int64_t>{0, 1, 2}));
}

}  // namespace
}  // namespace conclave
