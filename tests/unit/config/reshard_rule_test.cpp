#include "config/reshard_rule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace conclave {
namespace {

const std::vector<std::string> units = {"embedding", "layers.0", "layers.1", "layers.2", "layers.3", "head"};

std::vector<std::string> staying(const std::string& text) {
  const auto rule = ReshardRule::parse(text);
  std::vector<std::string> names;
  for (const std::string& unit : units)
    if (rule && rule->stays_gathered(unit)) names.push_back(unit);
  return names;
}

TEST(ReshardRule, names_the_units_that_stay_gathered) {
  using ::testing::ElementsAre;
  EXPECT_THAT(staying("all but layers.1"), ElementsAre("layers.1"));
  EXPECT_THAT(staying("all but layers.1-2"), ElementsAre("layers.1", "layers.2"));
  EXPECT_THAT(staying("all but  layers.3 , layers.0-1"), ElementsAre("layers.0", "layers.1", "layers.3"));
  EXPECT_THAT(staying("all but embedding, layers.2-2"), ElementsAre("embedding", "layers.2"));
  for (const std::string& unit : units) {
    EXPECT_FALSE(ReshardRule(true).stays_gathered(unit));
    EXPECT_TRUE(ReshardRule(false).stays_gathered(unit));
  }
}

TEST(ReshardRule, refuses_every_other_text) {
  for (const char* text :
       {"", "all", "all but", "all but ", "but layers.1", "layers.1", "all but layers.", "all but layers.x",
        "all but layers.2-1", "all but layers.1-", "all but layers.-1", "all but layers.1,,layers.2",
        "all but layers.1,", "all but .1", "all but 1", "all but layers.1.2", "all but Layers.1",
        "all but layers.99999999999999999999", "none but layers.1"})
    EXPECT_FALSE(ReshardRule::parse(text)) << text;
}

TEST(ReshardRule, prints_what_reads_back_to_the_same_rule) {
  for (const char* text : {"all but layers.1", "all but embedding, layers.0-2, layers.3"}) {
    const auto rule = ReshardRule::parse(text);
    ASSERT_TRUE(rule) << text;
    EXPECT_EQ(rule->text(), text);
  }
  EXPECT_EQ(ReshardRule(true).text(), "true");
  EXPECT_EQ(ReshardRule(false).text(), "false");
}

TEST(ReshardRule, names_a_unit_that_the_model_lacks_or_uses_once) {
  const auto mistake = [](const char* text) {
    return mistake_in(*ReshardRule::parse(text), units, {"embedding", "head"});
  };
  EXPECT_FALSE(mistake("all but layers.0-3"));
  EXPECT_EQ(mistake("all but layer.3").value().remedy, "Did you mean layers.3?");
  // A long range ends at the first unit that is not there.
  EXPECT_EQ(mistake("all but layers.2-999999999999").value().problem, "the model has no unit layers.4");
  EXPECT_EQ(mistake("all but rubbish").value().remedy,
            "Its units are embedding, layers.0, layers.1, layers.2, layers.3, head.");
  EXPECT_EQ(mistake("all but layers.1, head").value().problem,
            "head is used once in a micro-step, and there is nothing to keep it for");
}

}  // namespace
}  // namespace conclave
