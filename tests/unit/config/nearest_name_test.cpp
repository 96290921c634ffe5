#include "config/nearest_name.h"

#include <gtest/gtest.h>

namespace conclave {
namespace {

// Oracle: textbook values, counted by hand.
TEST(EditDistance, of_known_pairs) {
  EXPECT_EQ(edit_distance("", ""), 0);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("saturday", "sunday"), 3);
  EXPECT_EQ(edit_distance("steps", "stpes"), 1);  // one swap of neighbours
  EXPECT_EQ(edit_distance("ca", "abc"), 3);       // a swapped pair is not edited again
  EXPECT_EQ(edit_distance("balancing", "balencing"), 1);
  EXPECT_EQ(edit_distance("abc", "abcd"), edit_distance("abcd", "abc"));
}

TEST(NearestName, is_near_or_nothing) {
  EXPECT_EQ(nearest_name("optimiser", {"run", "optimizer", "model"}), "optimizer");
  EXPECT_EQ(nearest_name("lt", {"lr", "eps"}), "lr");
  EXPECT_EQ(nearest_name("zz", {"lr", "eps"}), std::nullopt);
  EXPECT_EQ(nearest_name("completely", {"lr", "eps"}), std::nullopt);
  EXPECT_EQ(nearest_name("x", {}), std::nullopt);
}

TEST(NearestKey, prefers_the_section_then_the_same_word_elsewhere) {
  const std::vector<std::string> keys = {"checkpoint.every", "validation.every", "optimizer.lr", "run.steps"};
  EXPECT_EQ(nearest_key("validation.evry", keys), "validation.every");
  EXPECT_EQ(nearest_key("run.lr", keys), "optimizer.lr");
  EXPECT_EQ(nearest_key("optimiser.lr", keys), "optimizer.lr");
  EXPECT_EQ(nearest_key("rum.stepps", keys), "run.steps");
  EXPECT_EQ(nearest_key("run.qwertzuiop", keys), std::nullopt);
}

}  // namespace
}  // namespace conclave
